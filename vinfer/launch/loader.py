"""Loads the models of a config: finds or builds each bundle, loads it, and starts its engine.

Runs on loader threads, after the port is bound, and again for an engine that died. Decides nothing about
requests, programs or routes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from vinfer.bundle.certificate import ParityReport
from vinfer.bundle.manifest import Manifest
from vinfer.bundle.verification import check_spans
from vinfer.config import Config, ModelConfig
from vinfer.errors import BundleError, EngineError, VinferError
from vinfer.launch.bundles import bundle_work, find_or_build
from vinfer.launch.collection import collection_paused
from vinfer.launch.devices import WantedDevices, group_devices, local_devices
from vinfer.launch.engine_start import start_engine
from vinfer.launch.parity import check_new_bundle
from vinfer.launch.progress.clock import PhaseClock, PhaseReport
from vinfer.launch.progress.times import PhaseTimes
from vinfer.server.constrain.grammars import grammar_compiler
from vinfer.server.model_table import ModelTable, SamplingDefaults, ServedModel
from vinfer.text.chat_form import load_chat_forms
from vinfer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine
    from vinfer.engine.loading.compile_count import CompileCounter
    from vinfer.hosts.leader import Leader

logger = logging.getLogger(__name__)

# Reading and placing weights waits for disks and devices more than it computes.
MAX_PARALLEL_LOADS = 4


class Loader:
    """Loads the models of a config, several at a time, and starts each of them.

    How many pages a model gets follows from the config and the devices, not from what others have taken by
    then, so it is the same in any order. Bundles are found or built one at a time: a build takes all cores
    and much memory, and Python 3.11 fails if two threads parse source code, which is part of the key.

    Args:
        table: receives progress, ready models and failures.
        wanted: parsed `--devices`.
        code_cache: directory for machine code that cannot be stored in its bundle.
        show: receives the same progress, for the terminal.
        num_keys: how many API keys there are; see `tenant_limits`.
        group: the other members, if the models are on several hosts. Then models are loaded one at a time, so
            that all members load them in the same order.
    """

    def __init__(
        self,
        config: Config,
        table: ModelTable,
        *,
        wanted: WantedDevices | None,
        code_cache: Path,
        show: Callable[[PhaseReport], None],
        num_keys: int = 0,
        group: Leader | None = None,
    ) -> None:
        self._group = group
        self._num_keys = num_keys
        self._config = config
        self._table = table
        self._wanted = wanted
        self._code_cache = code_cache
        self._show = show
        self._clock = PhaseClock(PhaseTimes(config.cache_dir), self._report)
        self._bundle_turn = threading.Lock()
        self._starts: dict[str, Callable[[], Engine]] = {}
        self._engines: dict[str, Engine] = {}
        self._counter: CompileCounter | None = None

    def num_post_ready_compiles(self) -> int:
        return 0 if self._counter is None else self._counter.num_post_ready

    def run(self) -> None:
        """Load every model; report each failure to the table, which ends the server if it needs the model."""
        with collection_paused():
            self._load_all()

    def _load_all(self) -> None:
        models = self._config.models
        # Without devices, a model that is not required is no excuse.
        first = next(model.name for model in models if model.required)
        if not self._reports(first, functools.partial(self._initialize, first)):
            return
        num_threads = MAX_PARALLEL_LOADS if self._group is None else 1
        with ThreadPoolExecutor(num_threads, thread_name_prefix="loader") as pool:
            for position, model in enumerate(models):
                pool.submit(self._reports, model.name, functools.partial(self._load, position))
        if self._group is not None and self._table.ready:
            self._group.say_ready()

    def restart(self, name: str) -> Engine:
        """Replace the engine of a model that died by a new one from the same bundle; any thread.

        Raises:
            VinferError: see `start_engine`.
        """
        self._engines[name].release()
        self._engines[name] = self._starts[name]()
        return self._engines[name]

    def stop(self) -> None:
        for engine in self._engines.values():
            engine.stop()

    def _reports(self, name: str, step: Callable[[], None]) -> bool:
        """Take a step, and return whether it succeeded; whatever ends it otherwise is reported."""
        try:
            step()
        except VinferError as error:
            logger.error("model %s: %s", name, error.message)
            self._table.fail(name, error)
            return False
        except BaseException as error:
            logger.exception("model %s could not be loaded", name)
            self._table.fail(name, EngineError(f"{type(error).__name__}: {error}"))
            return False
        return True

    def _initialize(self, name: str) -> None:
        self._clock(name, "starting jax", 0, 1)
        from vinfer.engine.loading.compile_count import CompileCounter

        self._counter = CompileCounter()
        # What is compiled for a model that is still being loaded does not count.
        self._counter.mark_ready()
        if self._group is None:
            self._target = local_devices(self._wanted)
        else:
            self._clock(name, "waiting for members", 0, 1)
            self._group.join([model.name for model in self._config.models])
            self._target = group_devices(self._wanted)
        self._dispatch_lock = threading.Lock()

    def _load(self, position: int) -> None:
        model = self._config.models[position]
        with self._bundle_turn:
            bundle = find_or_build(
                model,
                where=f"models[{position}]",
                target=self._target,
                bundles_dir=self._config.bundles_dir,
                progress=self._clock,
                expect=self._clock.expect,
            )
        directory, manifest = bundle.directory, bundle.manifest
        together = None
        if self._group is not None:
            check_spans(directory, manifest, self._target.num_devices)
            self._clock(model.name, "waiting for members", 0, 1)
            together = self._group.add(position, model.name, manifest)
        roots = bundle.code_roots(self._code_cache)
        self._clock.expect(model.name, bundle_work(manifest, roots))
        self._starts[model.name] = start = functools.partial(
            start_engine,
            bundle,
            model,
            self._target,
            code_roots=roots,
            dispatch_lock=self._dispatch_lock,
            progress=self._clock,
            where=f"models[{position}]",
            num_keys=self._num_keys,
            verify_weights=model.verify_weights,
            together=together,
        )
        # A bundle that has just been built has just been hashed.
        self._engines[model.name] = engine = start(verify_weights=model.verify_weights and not bundle.is_new)
        with self._bundle_turn if bundle.is_new else contextlib.nullcontext():
            parity = check_new_bundle(bundle, model, engine, self._clock)
        self._table.serve(served_model(directory, manifest, model, engine, position=position, parity=parity))
        self._clock(model.name, "ready", 1, 1)

    def _report(self, report: PhaseReport) -> None:
        # Whoever serves is ready, which the table knows by then.
        if report.phase != "ready":
            self._table.report(report.name, report.phase, report.done, report.total, report.expected_seconds)
        self._show(report)


def model_table(config: Config) -> ModelTable:
    """Return the table of a config's models before any of them is loaded."""
    return ModelTable(
        [model.name for model in config.models],
        optional=[model.name for model in config.models if not model.required],
    )


def served_model(
    directory: Path,
    manifest: Manifest,
    model: ModelConfig,
    engine: Engine,
    *,
    position: int,
    parity: ParityReport | None,
) -> ServedModel:
    """Assemble what the routes need from one model."""
    tokenizer = Tokenizer.load(directory / "tokenizer")
    if tokenizer.vocab_size > manifest.model.vocab_size:
        raise BundleError(
            f"bundle {directory}: its tokenizer is larger than its model: run vinfer precompile"
        )
    chat = load_chat_forms(
        directory / "tokenizer",
        tokenizer,
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
    )
    if manifest.images is not None:
        # Imported on the loader thread, or the event loop would wait for it at the first image.
        importlib.import_module("vinfer.images")
    return ServedModel(
        name=model.name,
        manifest=manifest,
        position=position,
        engine=engine,
        tokenizer=tokenizer,
        grammars=grammar_compiler(
            model.name,
            tokenizer,
            vocab_size=manifest.model.vocab_size,
            eos_token_ids=manifest.model.eos_token_ids,
        ),
        chat_template=chat.template,
        chat_template_kwargs=model.chat_template_kwargs,
        sampling=SamplingDefaults.resolve(model.sampling, manifest.model.sampling_defaults),
        max_model_len=engine.max_model_len,
        length_limit_key="max_model_len" if engine.max_model_len == manifest.max_model_len else "kv_cache",
        prefix_cache=model.prefix_cache,
        speculates=model.speculation is not None,
        answer_form=chat.answers,
        tool_use=chat.tool_use,
        parity=parity,
    )
