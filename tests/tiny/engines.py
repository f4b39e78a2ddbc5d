"""Drives the real engine over a bundle: prompts in, tokens and logprobs out, alone or batched.

Runs its own event loop, like the server. Knows no reference; everything it returns is plain data, so that
answers can be sent between processes as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from compiling import AS_SERVED, as_served
from tiny.checkpoints import CACHE

from vinfer.bundle.directory import read_manifest
from vinfer.bundle.manifest import MAX_TOP_LOGPROBS, Pooling
from vinfer.checkpoint.source import ResolvedSource
from vinfer.config import ModelConfig
from vinfer.engine.engine import Engine
from vinfer.engine.grammar import Grammar, GrammarKind, GrammarMatcher, GrammarSpec
from vinfer.engine.request import Request, RequestImage, SamplingParams, TokenLogprobs
from vinfer.launch.bundles import FoundBundle, open_bundle
from vinfer.launch.devices import Target
from vinfer.launch.engine_start import start_engine
from vinfer.server.constrain.grammars import grammar_compiler
from vinfer.text.tokenizer import Tokenizer

GREEDY = SamplingParams(max_tokens=64, temperature=0.0, top_logprobs=MAX_TOP_LOGPROBS)


@dataclasses.dataclass(frozen=True)
class Question:
    """A prompt and how to sample from it; it joins after its predecessor has yielded `joins_after` tokens."""

    prompt_ids: tuple[int, ...]
    params: SamplingParams = GREEDY
    joins_after: int = 0
    scores_prompt: bool = False
    pooling: Pooling | None = None
    cache_scope: str | None = "tests"
    grammar: Grammar | None = None
    images: tuple[RequestImage, ...] = ()


@dataclasses.dataclass
class Answer:
    """The engine's answer: one logprob per token, or none if not requested."""

    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    num_cached_tokens: int = 0
    pooled: list[bytes] = dataclasses.field(default_factory=list)


class Binder:
    """The tokenizer of a bundle: compiles grammars and decodes answers."""

    def __init__(self, directory: Path) -> None:
        card = read_manifest(directory).model
        self._tokenizer = Tokenizer.load(directory / "tokenizer")
        self._compiler = grammar_compiler(
            "tiny", self._tokenizer, vocab_size=card.vocab_size, eos_token_ids=card.eos_token_ids
        )

    def grammar(self, kind: GrammarKind, text: str) -> Grammar:
        return asyncio.run(self._compiler.compile(GrammarSpec(kind, text, "the.field")))

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode_plain(text))

    def text(self, answer: Answer) -> str:
        """Return an answer's text without control tokens, with invalid UTF-8 bytes unchanged."""
        return self._tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def _matcher(question: Question) -> GrammarMatcher | None:
    if question.grammar is None:
        return None
    params = question.params
    return question.grammar.matcher(min_tokens=params.min_tokens, stop_token_ids=params.stop_token_ids)


def load_engine(directory: Path, model: ModelConfig) -> Engine:
    """Start an engine over a bundle on the first devices of this process.

    Machine code is kept in `.build/` between runs.
    """
    devices = jax.local_devices()
    target = Target(platform="cpu", num_devices=len(devices), devices=devices)
    manifest = open_bundle(directory, platform="cpu", num_devices=len(devices))
    bundle = FoundBundle(directory, ResolvedSource(str(directory), "bundle", directory, {}), manifest)
    roots = (CACHE / "test-code" / manifest.key,)
    with as_served() if model.name in AS_SERVED else contextlib.nullcontext():
        return start_engine(bundle, model, target, code_roots=roots, progress=lambda *_: None)


def ask(engine: Engine, questions: Sequence[Question]) -> list[Answer]:
    """Run questions, each submitted after the previous one has yielded `joins_after` tokens."""

    async def serve_all() -> list[Answer]:
        answers = [Answer() for _ in questions]
        progress = asyncio.Condition()

        async def serve_one(place: int) -> None:
            question, answer = questions[place], answers[place]
            request = Request(
                id=f"question-{place}",
                prompt_ids=question.prompt_ids,
                params=question.params,
                arrival_seconds=time.monotonic(),
                scores_prompt=question.scores_prompt,
                pooling=question.pooling,
                cache_scope=question.cache_scope,
                grammar=_matcher(question),
                images=question.images,
            )
            async for event in engine.submit(request):
                if event.error is not None:
                    raise event.error
                answer.token_ids += event.token_ids
                answer.logprobs += event.logprobs or ()
                answer.finish_reason = event.finish_reason
                answer.prompt_logprobs += event.prompt_logprobs
                answer.num_cached_tokens += event.num_cached_tokens
                answer.pooled += event.pooled
                async with progress:
                    progress.notify_all()

        async with asyncio.TaskGroup() as tasks:
            for place, question in enumerate(questions):
                if place and question.joins_after:
                    before = answers[place - 1]
                    async with progress:
                        await progress.wait_for(
                            lambda before=before, needed=question.joins_after: (
                                len(before.token_ids) >= needed or before.finish_reason is not None
                            )
                        )
                tasks.create_task(serve_one(place))
                # Reaches the engine's inbox before later ones, so that slots are assigned in order.
                await asyncio.sleep(0)
        return answers

    return asyncio.run(serve_all())


def ask_alone(engine: Engine, questions: Sequence[Question]) -> list[Answer]:
    """Run questions one after another."""
    return [ask(engine, [question])[0] for question in questions]
