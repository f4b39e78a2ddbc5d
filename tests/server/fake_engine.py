"""An engine whose tokens are arithmetic, so that expected text is worked out by hand.

Token i of a completion is letter number `(sum of the prompt's ids + seed if sampled + i) mod 26`; 'A' is 0.
If `script` is set, its ids are generated instead. Ids are those of `byte_tokenizer`: 4 + byte.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from vinfer.bundle.manifest import (
    FORMAT_VERSION,
    MESH_AXES,
    Embeddings,
    ImageInput,
    Manifest,
    ModelCard,
    ProgramSpec,
    StateSpec,
)
from vinfer.bundle.programs import ProgramShape
from vinfer.engine.request import EngineStats, FinishReason, Request, TokenEvent, TokenLogprobs
from vinfer.engine.tenants import TenantLimits
from vinfer.errors import QueueFullError, VinferError
from vinfer.image_processing import ClipProcessing, PixelValues, Placeholder
from vinfer.server.constrain.grammars import grammar_compiler
from vinfer.server.model_table import PrefixCache, SamplingDefaults, ServedModel
from vinfer.text.answer_form import answer_form
from vinfer.text.chat_template import ChatTemplate
from vinfer.text.tokenizer import Tokenizer

SPECIALS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, EOS, IM_START, IM_END = range(4)
FIRST_BYTE = 4
VOCAB_SIZE = FIRST_BYTE + 256
EMBEDDING_SIZE = 8
# A user turn "hi" becomes: <|im_start|> + "user\n" + "hi" + <|im_end|> + <|im_start|> + "assistant\n".
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    # Only if a request sets them.
    "{% if enable_thinking %}T{% endif %}{{ style }}{{ depth }}{{ reasoning_effort }}"
)


def ids_of(text: str) -> list[int]:
    """Return a text as token ids: one per byte."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def letters(start: int, num: int) -> str:
    """Return the text that the engine generates for a prompt whose ids add up to `start`."""
    return "".join(chr(ord("A") + (start + i) % 26) for i in range(num))


def byte_tokenizer(directory: Path) -> Tokenizer:
    """Build a byte-level tokenizer without merges: every byte is a token, in the order of bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {
        byte: chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)
    }
    vocab = {token: i for i, token in enumerate(SPECIALS)}
    vocab |= {spelled[byte]: FIRST_BYTE + byte for byte in range(256)}
    fast = FastTokenizer(models.BPE(vocab=vocab, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    directory.mkdir(parents=True, exist_ok=True)
    fast.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "unk_token": None}
    content = {**named, "additional_special_tokens": []}
    (directory / "special_tokens.json").write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.load(directory)


def fake_images(num_image_tokens: int) -> ImageInput:
    """Return what makes a model take images, each of so many tokens."""
    return ImageInput(
        token_id=BOS,
        processing=ClipProcessing(
            resample=3,
            values=PixelValues(),
            placeholder=Placeholder(marker="<s>", repeated="<s>"),
            resize_to=(8, 8),
            crop=(8, 8),
            num_image_tokens=num_image_tokens,
        ),
        weights=(),
        features=StateSpec(name="features", shape=(1, 1), dtype="float32", initial=0),
    )


@dataclasses.dataclass
class FakeEngine:
    """See the module. Some fields are switches; tests inspect the others afterwards."""

    max_model_len: int = 128
    script: list[int] | None = None
    tokens_per_event: int = 1
    seconds_per_event: float = 0.0
    is_stuck: bool = False
    queue_full: bool = False
    pooled_scale: float = 1.0
    fail_after_tokens: int | None = None
    failure: Exception | None = None
    logprob_of: dict[int, float] = dataclasses.field(default_factory=dict)
    is_alive: bool = True
    step_seconds: float = 0.0
    is_full_for: str | None = None
    limits: TenantLimits | None = None
    requests: list[Request] = dataclasses.field(default_factory=list)
    cancelled: list[str] = dataclasses.field(default_factory=list)
    num_generated: int = 0
    num_guessed: int = 0
    changed: threading.Condition = dataclasses.field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self._own_max_model_len = self.max_model_len

    def reset(self) -> None:
        """Go back to the defaults, in place, but for the length that this engine was made for."""
        self.max_model_len = self._own_max_model_len
        for field in dataclasses.fields(self):
            if field.name not in ("changed", "max_model_len"):
                default = field.default
                factory = field.default_factory
                setattr(self, field.name, factory() if factory is not dataclasses.MISSING else default)

    def check_room(self, tenant: str) -> None:
        if tenant == self.is_full_for:
            raise QueueFullError("64 requests wait already: try again later", retry_after_seconds=121.2)

    def set_limits(self, limits: TenantLimits) -> None:
        self.limits = limits

    def give_up(self) -> None:
        self.is_alive = False

    def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        if self.queue_full:
            raise QueueFullError("64 requests wait already: try again later")
        with self.changed:
            is_shared = any(_shares(request, earlier) for earlier in self.requests)
            self.requests.append(request)
            self.changed.notify_all()
        if request.pooling is not None:
            return self._pooled_events(request)
        return self._events(request, num_cached_tokens=len(request.prompt_ids) - 1 if is_shared else 0)

    def cancel(self, request_id: str) -> None:
        with self.changed:
            self.cancelled.append(request_id)
            self.changed.notify_all()

    def stats(self) -> EngineStats:
        # A cancel may come late, after `reset`, for a request of an earlier test.
        return EngineStats(
            num_requests_running=sum(r.id not in self.cancelled for r in self.requests),
            num_slots=4,
            kv_cache_usage_fraction=0.25,
            generation_tokens_total=self.num_generated,
            num_overlapped_dispatches_total=7,
            num_preemptions_total=2,
            prefix_cache_queries_total=40,
            prefix_cache_hits_total=30,
            spec_decode_num_drafts_total=5,
            spec_decode_num_draft_tokens_total=20,
            spec_decode_num_accepted_tokens_total=11,
        )

    def wait_until_cancelled(self, num: int) -> None:
        """Wait until this many requests have been cancelled."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.cancelled) >= num, timeout=20)

    def wait_until_submitted(self, num: int) -> None:
        """Wait until this many requests have been submitted."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= num, timeout=20)

    async def _events(self, request: Request, num_cached_tokens: int) -> AsyncIterator[TokenEvent]:
        tokens, finish_reason = self._completion(request)
        # There is always a slot.
        queue_seconds = time.monotonic() - request.arrival_seconds
        if request.scores_prompt:
            # In two pieces if possible, like a prompt that is scored in two chunks.
            scored = [_logprobs(token, request.params.top_logprobs or 0) for token in request.prompt_ids[1:]]
            for piece in (scored[:1], scored[1:]):
                yield TokenEvent(prompt_logprobs=tuple(piece))
        if not tokens:
            yield TokenEvent(finish_reason=finish_reason)
        for start in range(0, len(tokens), self.tokens_per_event):
            if self.is_stuck:
                await asyncio.sleep(3600)
            await asyncio.sleep(self.seconds_per_event)
            if self.fail_after_tokens is not None and start >= self.fail_after_tokens:
                if isinstance(self.failure, VinferError):
                    yield TokenEvent(error=self.failure)
                    return
                assert self.failure is not None
                raise self.failure
            piece = tuple(tokens[start : start + self.tokens_per_event])
            self.num_generated += len(piece)
            is_last = start + len(piece) == len(tokens)
            logprobs = None
            if request.params.top_logprobs is not None:
                logprobs = tuple(
                    dataclasses.replace(of_token, logprob=self.logprob_of.get(token, of_token.logprob))
                    for token in piece
                    for of_token in [_logprobs(token, request.params.top_logprobs)]
                )
            yield TokenEvent(
                piece,
                logprobs,
                finish_reason if is_last else None,
                num_cached_tokens=0 if start else num_cached_tokens,
                num_draft_tokens=self.num_guessed,
                num_accepted_tokens=min(self.num_guessed, len(piece)),
                queue_seconds=None if start else queue_seconds,
            )

    async def _pooled_events(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Yield the sum of [id, 1, 0, ..., 0] over the counted tokens, in two parts like two chunks."""
        if self.is_stuck:
            await asyncio.sleep(3600)
        if isinstance(self.failure, VinferError):
            yield TokenEvent(error=self.failure)
            return
        counted = request.prompt_ids if request.pooling == "mean" else request.prompt_ids[-1:]
        for half, tokens in enumerate((counted[::2], counted[1::2])):
            said = (self.pooled_scale * sum(tokens), self.pooled_scale * len(tokens))
            part = array("f", (*said, *[0.0] * (EMBEDDING_SIZE - 2)))
            yield TokenEvent(finish_reason="length" if half else None, pooled=(part.tobytes(),))

    def _completion(self, request: Request) -> tuple[list[int], FinishReason]:
        params = request.params
        start = sum(request.prompt_ids) + (params.seed if params.temperature > 0 else 0)
        letters_of_prompt = [FIRST_BYTE + ord("A") + (start + i) % 26 for i in range(params.max_tokens)]
        tokens = (self.script or letters_of_prompt)[: params.max_tokens]
        for i, token in enumerate(tokens):
            if token in params.stop_token_ids and i >= params.min_tokens:
                return tokens[: i + 1], "stop"
        return tokens, "length"


def _shares(request: Request, earlier: Request) -> bool:
    """Return whether a prompt is found whole in the pages of an earlier one; parts are never found here."""
    asked, found = ((each.cache_scope, each.prompt_ids, each.images) for each in (request, earlier))
    return request.cache_scope is not None and asked == found


def _logprobs(token: int, num: int) -> TokenLogprobs:
    """Return -0.5 for the token itself, and -1.5, -2.5, ... for the next ids."""
    return TokenLogprobs(-0.5, tuple(token + i for i in range(num)), tuple(-0.5 - i for i in range(num)))


def fake_manifest(engine: FakeEngine) -> Manifest:
    """Return the manifest of a bundle that scores prompts, embeds, and has several shapes of a program."""
    shapes = [ProgramShape(kind=kind, rows=rows, length=8) for kind in ("decode", "score") for rows in (1, 4)]
    return Manifest(
        format_version=FORMAT_VERSION,
        key="bundle-0123",
        created=1_700_000_000,
        versions={},
        platform="cpu",
        mesh=dict.fromkeys(MESH_AXES, 1),
        dtype="float32",
        num_slots=4,
        max_model_len=engine.max_model_len,
        model=ModelCard(
            source="fake",
            architecture="FakeForCausalLM",
            task="text",
            num_parameters=1,
            bos_token_id=BOS,
            eos_token_ids=(EOS, IM_END),
            pad_token_id=None,
            vocab_size=VOCAB_SIZE,
            sampling_defaults={},
        ),
        weights=(),
        page_size=32,
        kv_windows=(None,),
        kv=(),
        state=(),
        programs=tuple(ProgramSpec(shape=shape, file="", inputs=(), outputs=()) for shape in shapes),
        files={},
        embeddings=Embeddings(pooling="mean", size=EMBEDDING_SIZE),
    )


def with_manifest(served: ServedModel, **changes: Any) -> ServedModel:
    """Return a model of another bundle."""
    return dataclasses.replace(served, manifest=served.manifest.model_copy(update=changes))


def served_model(
    engine: FakeEngine,
    tokenizer: Tokenizer,
    name: str = "fake",
    *,
    chat_template: str | None = TEMPLATE,
    prefix_cache: PrefixCache = "per_key",
    speculates: bool = False,
) -> ServedModel:
    """Return a model that is served by a fake engine."""
    template = None
    if chat_template is not None:
        template = ChatTemplate(
            chat_template, tokenizer.special_tokens, control_tokens=tokenizer.control_tokens
        )
    return ServedModel(
        name=name,
        manifest=fake_manifest(engine),
        position=0,
        engine=engine,
        tokenizer=tokenizer,
        grammars=grammar_compiler(name, tokenizer, vocab_size=VOCAB_SIZE, eos_token_ids=(EOS, IM_END)),
        chat_template=template,
        chat_template_kwargs={"enable_thinking": "boolean", "style": "string", "depth": "integer"},
        sampling=SamplingDefaults(temperature=0.0),
        max_model_len=engine.max_model_len,
        prefix_cache=prefix_cache,
        speculates=speculates,
        answer_form=answer_form("auto", template),
    )


# The prompt of a chat with the message "hi", and the first token of its answer.
PROMPT_IDS = (IM_START, *ids_of("user\nhi"), IM_END, IM_START, *ids_of("assistant\n"))
START = sum(PROMPT_IDS)
