"""The models of this process: how far each one has loaded, and what serves it once it is ready.

Loader threads write, the event loop reads; one lock makes that safe. It knows neither HTTP nor how a
model is loaded.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from vinfer.bundle.certificate import ParityReport
from vinfer.bundle.manifest import Manifest, ModelCard
from vinfer.bundle.sampling import SamplingNumbers
from vinfer.config import SamplingConfig, TemplateKwargType
from vinfer.engine.grammar import GrammarCompiler
from vinfer.engine.request import EngineClient
from vinfer.errors import ModelNotFoundError, NotReadyError, RequestError, VinferError
from vinfer.text.answer_form import PLAIN_ANSWERS, AnswerForm
from vinfer.text.chat_form import ChatForm
from vinfer.text.chat_template import ChatTemplate
from vinfer.text.tokenizer import Tokenizer

PrefixCache = Literal["per_key", "shared", "off"]
ParityVerdict = Literal["passed", "failed", "unverified"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults(SamplingNumbers):
    """The values of sampling fields that a request leaves out; the defaults here are OpenAI's.

    Attributes:
        max_tokens: None means all the room that the prompt leaves (16 for `/v1/completions`).
    """

    max_tokens: int | None = None
    n: int = 1

    @classmethod
    def resolve(cls, config: SamplingConfig, generation_config: Mapping[str, Any]) -> SamplingDefaults:
        """Resolve each field: the `sampling` block, else the checkpoint's generation_config, else OpenAI's.

        Args:
            config: the `sampling` block; a null field is unset.
            generation_config: the checkpoint's, with Hugging Face's names; other keys are ignored.
        """
        chosen: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            theirs = "max_new_tokens" if field.name == "max_tokens" else field.name
            value = getattr(config, field.name)
            # `n` is between client and server; the checkpoint does not decide it.
            if value is None and field.name != "n":
                value = generation_config.get(theirs)
            if value is not None:
                chosen[field.name] = value
        return cls(**chosen)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Everything a route needs to answer for one model.

    Attributes:
        name: id in the API.
        manifest: of its bundle: what the model is, and what its programs can do.
        position: index in the config's `models` list, for messages such as `models[0].max_model_len`.
        chat_template: None if the checkpoint has none; conversations are then refused.
        chat_template_kwargs: the template's variables that requests may set, with their types.
        max_model_len: most tokens of a prompt and its answer together.
        length_limit_key: the key of the model's config that sets max_model_len: that one, or `kv_cache` if
            its pages hold fewer tokens.
        grammars: compiles the grammars that constrain answers.
        prefix_cache: which requests may share the pages of equal beginnings of their prompts.
        speculates: whether drafts of answers are verified.
        tool_use: the form of conversations with tools, if the model has a chat template of its own for them.
        answer_form: how the model writes tool calls and reasoning, and how tools are described to it.
        parity: how the bundle compares with transformers; None if it was never compared.
    """

    name: str
    manifest: Manifest
    position: int
    engine: EngineClient
    tokenizer: Tokenizer
    grammars: GrammarCompiler
    chat_template: ChatTemplate | None
    chat_template_kwargs: Mapping[str, TemplateKwargType]
    sampling: SamplingDefaults
    max_model_len: int
    prefix_cache: PrefixCache
    length_limit_key: str = "max_model_len"
    speculates: bool = False
    answer_form: AnswerForm = PLAIN_ANSWERS
    tool_use: ChatForm | None = None
    parity: ParityReport | None = None

    @property
    def card(self) -> ModelCard:
        """What the model is."""
        return self.manifest.model

    @property
    def template_variables(self) -> frozenset[str]:
        """The variables that the model's chat templates read."""
        variables = frozenset() if self.chat_template is None else self.chat_template.variables
        return variables if self.tool_use is None else variables | self.tool_use.template.variables

    def require_head(self) -> None:
        """Check that the model can generate.

        Raises:
            RequestError: it only embeds.
        """
        if not self.card.has_head:
            raise RequestError(
                f"model {self.name} is a decoder without a head, so it generates nothing: use "
                "/v1/embeddings, or another model",
                param="model",
            )

    def chat_form(self, *, has_tools: bool) -> ChatForm | None:
        """Return how a conversation becomes a prompt; None if the model takes no conversations."""
        if has_tools and self.tool_use is not None:
            return self.tool_use
        return None if self.chat_template is None else ChatForm(self.chat_template, self.answer_form)

    @property
    def parity_verdict(self) -> ParityVerdict:
        return "unverified" if self.parity is None else self.parity.verdict


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model's progress: `done` of `total` units of work in `phase`.

    Attributes:
        since_seconds: when the phase began, of `time.monotonic`; None for `waiting`.
        expected_seconds: how long it will take in all; None if that is not known.
    """

    name: str
    phase: str = "waiting"
    done: int = 0
    total: int = 0
    since_seconds: float | None = None
    expected_seconds: float | None = None
    error: VinferError | None = None


class ModelTable:
    """Models by name, in the order of the config.

    Args:
        optional: names of those that the server does without: `models[].required` is false.
    """

    def __init__(self, names: Sequence[str], optional: Collection[str] = ()) -> None:
        # Re-entrant: a signal handler may interrupt the event loop while it holds the lock.
        self._lock = threading.RLock()
        self._statuses = {name: ModelStatus(name=name) for name in names}
        self._required = tuple(name for name in names if name not in optional)
        self._served: dict[str, ServedModel] = {}
        self._num_restarts = dict.fromkeys(names, 0)
        self._stuck: set[str] = set()
        self._leaving = False
        self._draining = False

    def report(
        self, name: str, phase: str, done: int = 0, total: int = 0, expected_seconds: float | None = None
    ) -> None:
        """Record a model's progress."""
        with self._lock:
            before = self._statuses[name]
            self._statuses[name] = ModelStatus(
                name=name,
                phase=phase,
                done=done,
                total=total,
                since_seconds=before.since_seconds if before.phase == phase else time.monotonic(),
                expected_seconds=expected_seconds,
            )

    def serve(self, model: ServedModel) -> None:
        """Make a loaded model available to requests."""
        with self._lock:
            self._served[model.name] = model
            self._statuses[model.name] = ModelStatus(name=model.name, phase="ready", done=1, total=1)

    def replace_engine(self, name: str, engine: EngineClient) -> None:
        """Serve a model by another engine, within the same limits."""
        with self._lock:
            served = self._served[name]
            engine.set_limits(served.engine.limits)
            self.serve(dataclasses.replace(served, engine=engine))

    def fail(self, name: str, error: VinferError) -> None:
        """Record that a model is not served, or no longer.

        If it is required, `run_server` returns the error's exit code.
        """
        with self._lock:
            self._served.pop(name, None)
            self._statuses[name] = dataclasses.replace(self._statuses[name], phase="failed", error=error)

    def count_restart(self, name: str) -> None:
        """Count an engine that is started anew."""
        with self._lock:
            self._num_restarts[name] += 1

    @property
    def num_restarts(self) -> Mapping[str, int]:
        """How often the engine of each model was started anew."""
        with self._lock:
            return dict(self._num_restarts)

    def is_required(self, name: str) -> bool:
        """Whether the server is of no use without this model."""
        return name in self._required

    def leave(self) -> None:
        """Tell probes that the server is about to drain; requests are still accepted."""
        self._leaving = True

    def drain(self) -> None:
        """Accept no more requests; running ones continue."""
        self._leaving = self._draining = True

    @property
    def leaving(self) -> bool:
        """Whether the server is draining, or about to."""
        return self._leaving

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def statuses(self) -> tuple[ModelStatus, ...]:
        dead = self.dead
        with self._lock:
            return tuple(
                # One that is restarted has a phase of its own.
                dataclasses.replace(status, phase="failed")
                if status.name in dead and status.phase == "ready"
                else status
                for status in self._statuses.values()
            )

    @property
    def phase(self) -> str:
        """The phase of the whole server: that of the first required model that is not ready."""
        if self._leaving:
            return "draining"
        phases = [status.phase for status in self.statuses if self.is_required(status.name)]
        if "failed" in phases:
            return "failed"
        return next((phase for phase in phases if phase != "ready"), "ready")

    @property
    def served_models(self) -> tuple[ServedModel, ...]:
        """The models that are loaded, in the order of the config."""
        with self._lock:
            return tuple(self._served[name] for name in self._statuses if name in self._served)

    @property
    def failure(self) -> VinferError | None:
        """The first error of a required model."""
        errors = (status.error for status in self.statuses if self.is_required(status.name))
        return next((error for error in errors if error is not None), None)

    @property
    def lost(self) -> tuple[str, ...]:
        """Names of models that are not served for good: not loaded, or given up and not required."""
        with self._lock:
            return tuple(status.name for status in self._statuses.values() if status.error is not None)

    @property
    def dead(self) -> tuple[str, ...]:
        """Names of loaded models whose engine has died."""
        return tuple(model.name for model in self.served_models if not model.engine.is_alive)

    @property
    def ready(self) -> bool:
        """Whether every required model is being served and new requests are accepted."""
        return self.phase == "ready"

    @property
    def loading(self) -> bool:
        """Whether a model is on its way: loaded, or restarted."""
        return any(status.phase not in ("ready", "failed") for status in self.statuses)

    def is_stuck(self, name: str) -> bool:
        """Whether the engine of a model was given up."""
        return name in self._stuck

    def give_up_stuck(self, max_step_seconds: float) -> tuple[str, ...]:
        """Fail the engines whose current step has taken longer, and return the names of their models.

        Their devices may still be at work, so nothing can be loaded there again.
        """
        stuck = [
            model
            for model in self.served_models
            if model.engine.is_alive and model.engine.step_seconds > max_step_seconds
        ]
        for model in stuck:
            model.engine.give_up()
            self._stuck.add(model.name)
        return tuple(model.name for model in stuck)

    def end_all(self, error: VinferError) -> None:
        """Fail all requests and models: what they all need is gone. Called on the event loop."""
        served = self.served_models
        for model in served:
            model.engine.give_up()
            self._stuck.add(model.name)
        for name in self._statuses.keys() - {model.name for model in served}:
            self.fail(name, error)

    def serving_or_only(self, name: str | None) -> ServedModel:
        """Return the model called `name`; None means the only one there is.

        Raises:
            RequestError: there are several models and `name` is None.
            ModelNotFoundError, NotReadyError: see `serving`.
        """
        if name is None:
            name, *others = self._statuses
            if others:
                names = ", ".join(self._statuses)
                raise RequestError(
                    f"model is missing and there are several: name one of {names}", param="model"
                )
        return self.serving(name)

    def serving(self, name: str) -> ServedModel:
        """Return the model called `name`.

        Raises:
            ModelNotFoundError: the config has no such name.
            NotReadyError: the model is loading, its engine has died, or the server is draining.
        """
        with self._lock:
            known = list(self._statuses)
            model = self._served.get(name)
            status = self._statuses.get(name)
        if status is None:
            names = ", ".join(known)
            raise ModelNotFoundError(
                f"model {name[:128]!r} is not served here: use one of {names}", param="model"
            )
        if self._draining:
            raise NotReadyError("the server is shutting down: try again")
        if model is None:
            raise NotReadyError(f"model {name} is not ready (phase: {status.phase}): try again")
        if not model.engine.is_alive:
            raise NotReadyError(f"the engine of model {name} has stopped: try again")
        return model
