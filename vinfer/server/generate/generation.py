"""One HTTP request's completions: submits them to the engine, turns token events into text, cancels them.

Runs on the event loop. One small task per choice takes events from the engine; one consumer takes what has
accumulated. A slow consumer (one with a slow client) gets larger deltas, not more of them, so max_tokens
limits what waits. It does not know the form of the answer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from vinfer.engine.grammar import Grammar
from vinfer.engine.request import (
    FinishReason,
    Request,
    RequestImage,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from vinfer.errors import EngineError
from vinfer.server.fields.sampling import SamplingFields
from vinfer.server.generate.cache_scope import cache_scope
from vinfer.server.generate.sampling import choice_seed
from vinfer.server.http.context import RequestContext
from vinfer.server.metrics import ServerMetrics
from vinfer.server.model_table import ServedModel
from vinfer.text.text_stream import TextStream

# Enough for the longest character and the space before it.
PROMPT_TAIL_LEN = 8


@dataclasses.dataclass(frozen=True, slots=True)
class GeneratedToken:
    """A token of the answer and its logprobs; used if they were requested."""

    id: int
    logprobs: TokenLogprobs


@dataclasses.dataclass(slots=True)
class ChoiceDelta:
    """What one choice has gained since its last delta; all deltas together are the whole choice."""

    index: int
    text: str = ""
    tokens: list[GeneratedToken] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    """All that count as usage, in order; those whose text was held back come with the next delta."""
    finish_reason: FinishReason | None = None
    stop: str | None = None
    """The stop string that ended it, if one did."""
    prompt_logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    """Those of the prompt's next tokens, if it is scored; all come before the first token of the answer."""
    sum_logprobs: float = 0.0
    num_logprobs: int = 0
    """Over all tokens that count as usage, including the stop token; 0 if no logprobs were requested."""

    @property
    def mean_logprob(self) -> float:
        """The mean logprob of the answer's tokens; 0 for an answer without tokens."""
        return self.sum_logprobs / max(self.num_logprobs, 1)

    def extend(self, later: ChoiceDelta) -> None:
        """Append a later delta."""
        self.text += later.text
        self.tokens += later.tokens
        self.token_ids += later.token_ids
        self.prompt_logprobs += later.prompt_logprobs
        self.sum_logprobs += later.sum_logprobs
        self.num_logprobs += later.num_logprobs
        self.finish_reason = later.finish_reason
        self.stop = later.stop


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptJob:
    """One prompt and how its completions are sampled; `params.seed` is that of its first completion.

    Attributes:
        scores_prompt: the logprobs of the prompt's own tokens are requested.
        grammar: what constrains each of its completions; None for nothing.
        priority: the priority of each of its completions while it waits for a slot.
        images: the prompt's images.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    scores_prompt: bool = False
    grammar: Grammar | None = None
    priority: int = 0
    images: tuple[RequestImage, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """How tokens become text.

    Attributes:
        includes_stop: a stop string or a stop token that ends an answer is part of its text.
        shown_special_ids: special tokens that are always shown, because they mark parts of an answer.
        continues_prompt: the text continues the prompt, so a leading space belongs to it.
        lists_stop_token: a stop token is listed among the answer's tokens, even if it is not in its text.
    """

    stop: tuple[str, ...] = ()
    skip_special_tokens: bool = True
    includes_stop: bool = False
    shown_special_ids: frozenset[int] = frozenset()
    continues_prompt: bool = False
    lists_stop_token: bool = False

    @classmethod
    def of(cls, fields: SamplingFields, **others: Any) -> TextRules:
        """Return the rules that a request's fields ask for, and others."""
        return cls(
            stop=tuple(fields.stop),
            skip_special_tokens=fields.skip_special_tokens,
            includes_stop=fields.include_stop_str_in_output,
            **others,
        )


class _Choice:
    """One running completion."""

    def __init__(self, index: int, request: Request, text: TextStream) -> None:
        self.index = index
        self.request = request
        self.text = text
        self.num_tokens = 0
        self.held_ids: list[int] = []
        self.num_cached_tokens = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self.last_token_seconds = 0.0
        self.is_finished = False


class Generation:
    """All completions of one HTTP request: `n` for each prompt, in order.

    Args:
        name: prefix of the engine's request ids, unique in this process.
        fields: say whose pages its prompts share: see `cache_scope`.
        context: of the HTTP request; its usage is kept up to date.
    """

    def __init__(
        self,
        *,
        name: str,
        model: ServedModel,
        jobs: Sequence[PromptJob],
        n: int,
        rules: TextRules,
        fields: SamplingFields,
        context: RequestContext,
        metrics: ServerMetrics,
    ) -> None:
        self.name = name
        self.model = model
        self.arrival_seconds = context.arrival_seconds
        self.num_prompt_tokens = sum(len(job.prompt_ids) for job in jobs)
        self._metrics = metrics
        self._usage = context.usage
        self._rules = rules
        self._n = n
        setting = model.prefix_cache if fields.cache_prompt else "off"
        scope = cache_scope(setting, tenant=context.tenant, cache_salt=fields.cache_salt, request_name=name)
        self._choices = [
            _Choice(
                i * n + j,
                _request(f"{name}-{i * n + j}", job, j, context, cache_scope=scope),
                _text_stream(job, rules, model),
            )
            for i, job in enumerate(jobs)
            for j in range(n)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._gathered: dict[int, ChoiceDelta] = {}
        self._news = asyncio.Event()
        self._failure: Exception | None = None

    @property
    def num_choices(self) -> int:
        return len(self._choices)

    @property
    def num_completion_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def num_cached_tokens(self) -> int:
        """The number of prompt tokens that a choice of the prompt found in pages of other requests."""
        cached = [choice.num_cached_tokens for choice in self._choices]
        return sum(max(cached[first : first + self._n]) for first in range(0, len(cached), self._n))

    @property
    def num_draft_tokens(self) -> int:
        """The number of tokens that were guessed and verified."""
        return sum(choice.num_draft_tokens for choice in self._choices)

    @property
    def num_accepted_tokens(self) -> int:
        """How many of these guesses were right."""
        return sum(choice.num_accepted_tokens for choice in self._choices)

    def prompt_ids(self, choice: int) -> tuple[int, ...]:
        """Return the prompt of a choice."""
        return self._choices[choice].request.prompt_ids

    @property
    def is_done(self) -> bool:
        """Whether every choice has finished and all its text has been taken."""
        return not self._gathered and all(choice.is_finished for choice in self._choices)

    def start(self) -> None:
        """Submit every choice, or none.

        Raises:
            QueueFullError: too many requests are waiting.
            NotReadyError: the engine is stopping.
            EngineError: the engine is dead.
        """
        submitted: list[tuple[_Choice, AsyncIterator[TokenEvent]]] = []
        try:
            for choice in self._choices:
                events = self.model.engine.submit(choice.request)
                submitted.append((choice, events))
        except Exception:
            self._cancel(choice for choice, _ in submitted)
            raise
        self._usage.num_prompt_tokens = self.num_prompt_tokens
        self._tasks = [asyncio.create_task(self._run(choice, events)) for choice, events in submitted]

    async def next_deltas(self, timeout_seconds: float | None) -> list[ChoiceDelta]:
        """Return the next deltas; empty if none came in time. None waits for as long as it takes.

        Raises:
            VinferError: the engine failed a choice; what came before that has been returned.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._news.wait()
        except TimeoutError:
            return []
        deltas = list(self._gathered.values())
        self._gathered = {}
        if self._failure is None:
            self._news.clear()
        elif not deltas:
            raise self._failure
        return deltas

    async def close(self) -> None:
        """Cancel what is still running. Safe to call twice, and before `start`."""
        self._cancel(choice for choice in self._choices if not choice.is_finished)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _cancel(self, choices: Iterable[_Choice]) -> None:
        for choice in choices:
            self.model.engine.cancel(choice.request.id)

    async def _run(self, choice: _Choice, events: AsyncIterator[TokenEvent]) -> None:
        try:
            async for event in events:
                self._take(choice, event)
                if choice.is_finished:
                    return
            raise EngineError("the engine ended a request without a result")
        except Exception as error:  # noqa: BLE001  handed to the consumer, which raises it
            self._failure = self._failure or error
            self._news.set()

    def _take(self, choice: _Choice, event: TokenEvent) -> None:
        if event.error is not None:
            raise event.error
        ends_with_stop_token = event.finish_reason == "stop"
        text = choice.text.push(
            event.token_ids, ends_with_stop_token=ends_with_stop_token, is_last=event.is_last
        )
        finish_reason: FinishReason | None = "stop" if text.stopped else event.finish_reason
        delta = ChoiceDelta(choice.index, text.text, finish_reason=finish_reason, stop=text.stop)
        choice.held_ids += event.token_ids[: text.num_tokens]
        delta.prompt_logprobs = list(event.prompt_logprobs)
        choice.num_cached_tokens += event.num_cached_tokens
        choice.num_draft_tokens += event.num_draft_tokens
        choice.num_accepted_tokens += event.num_accepted_tokens
        if event.logprobs is not None:
            lists_last = self._rules.lists_stop_token or self._rules.includes_stop
            is_last_hidden = ends_with_stop_token and not lists_last
            num_shown = min(text.num_tokens, len(event.token_ids) - is_last_hidden)
            tokens = zip(event.token_ids, event.logprobs, strict=True)
            delta.tokens = [GeneratedToken(*token) for token in tokens][: max(num_shown, 0)]
            counted = event.logprobs[: text.num_tokens]
            delta.sum_logprobs = sum(logprobs.logprob for logprobs in counted)
            delta.num_logprobs = len(counted)
        if event.queue_seconds is not None:
            self._metrics.observe_queue(self.model.name, event.queue_seconds)
            if self._usage.queue_seconds is None:
                self._usage.queue_seconds = event.queue_seconds
        # The first token is news even if its text is held back: clients measure when it comes.
        is_first = choice.num_tokens == 0 and text.num_tokens > 0
        self._observe(choice, text.num_tokens, finish_reason)
        choice.is_finished = finish_reason is not None
        if text.stopped and not event.is_last:
            self.model.engine.cancel(choice.request.id)
        if delta.text or delta.tokens or delta.prompt_logprobs or is_first or choice.is_finished:
            delta.token_ids, choice.held_ids = choice.held_ids, []
            if choice.index in self._gathered:
                self._gathered[choice.index].extend(delta)
            else:
                self._gathered[choice.index] = delta
            self._news.set()

    def _observe(self, choice: _Choice, num_tokens: int, finish_reason: FinishReason | None) -> None:
        now = time.monotonic()
        name = self.model.name
        if num_tokens:
            if choice.num_tokens == 0:
                self._metrics.observe_first_token(name, now - self.arrival_seconds)
            else:
                self._metrics.observe_tokens(name, num_tokens, now - choice.last_token_seconds)
            choice.last_token_seconds = now
            choice.num_tokens += num_tokens
            self._usage.num_completion_tokens += num_tokens
            if self._usage.first_token_seconds is None:
                self._usage.first_token_seconds = now - self.arrival_seconds
        if finish_reason is not None:
            self._metrics.observe_finish(name, finish_reason, now - self.arrival_seconds)


def _request(
    request_id: str,
    job: PromptJob,
    index_in_prompt: int,
    context: RequestContext,
    *,
    cache_scope: str,
) -> Request:
    params = dataclasses.replace(job.params, seed=choice_seed(job.params.seed, index_in_prompt))
    grammar = job.grammar
    return Request(
        id=request_id,
        prompt_ids=job.prompt_ids,
        params=params,
        arrival_seconds=context.arrival_seconds,
        scores_prompt=job.scores_prompt,
        cache_scope=cache_scope,
        tenant=context.tenant,
        images=job.images,
        grammar=None
        if grammar is None
        else grammar.matcher(min_tokens=params.min_tokens, stop_token_ids=params.stop_token_ids),
        priority=job.priority,
    )


def _text_stream(job: PromptJob, rules: TextRules, model: ServedModel) -> TextStream:
    return TextStream(
        model.tokenizer,
        stop=rules.stop,
        skip_special_tokens=rules.skip_special_tokens,
        includes_stop=rules.includes_stop,
        shown_special_ids=rules.shown_special_ids,
        prompt_tail=job.prompt_ids[-PROMPT_TAIL_LEN:] if rules.continues_prompt else (),
    )
