"""What goes into the engine and what comes out: requests, token events, statistics.

Deliberately plain Python: the server and the scheduler import this module and must never import JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vinfer.bundle.manifest import MAX_LOGIT_BIAS as MAX_LOGIT_BIAS
from vinfer.bundle.manifest import MAX_STOP_TOKEN_IDS as MAX_STOP_TOKEN_IDS
from vinfer.bundle.manifest import MAX_TOP_LOGPROBS as MAX_TOP_LOGPROBS
from vinfer.bundle.manifest import Pooling as Pooling
from vinfer.bundle.sampling import SamplingNumbers
from vinfer.engine.tenants import TenantLimits
from vinfer.errors import VinferError

if TYPE_CHECKING:
    import numpy as np

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams(SamplingNumbers):
    """How one request is sampled. All numbers are already validated and all defaults applied.

    Order of application: penalties, logit_bias, min_tokens, grammar, temperature, top_k, top_p, min_p.

    Attributes:
        max_tokens: most tokens to generate; the caller has clamped it to max_model_len. With 0 the request
            ends after its prompt.
        seed: 64-bit; the caller draws one if the client sent none.
        stop_token_ids: ids that end the request, the EOS ids among them unless the client asked to ignore
            those; at most MAX_STOP_TOKEN_IDS.
        min_tokens: stop_token_ids cannot be sampled before this many tokens.
        logit_bias: (token id, bias) pairs, at most MAX_LOGIT_BIAS.
        top_logprobs: None for no logprobs; else 0..MAX_TOP_LOGPROBS alternatives per token.
    """

    max_tokens: int
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None


class TokenMatcher(Protocol):
    """The position of a request in its grammar: `vinfer.engine.grammar.GrammarMatcher`, or a test's own.

    Only the engine thread advances it. It also enforces `min_tokens`.
    """

    @property
    def mask(self) -> bytes:
        """One bit per id of the vocabulary, in uint32 words; set if the token may come next."""
        ...

    def advance(self, token_ids: Sequence[int]) -> None:
        """Advance by generated tokens, none of which ended the request, and compute the next token's mask.

        Raises:
            RequestError: the request cannot go on.
        """
        ...

    def forced(self, max_tokens: int) -> tuple[int, ...]:
        """Return the tokens that must come next, at most so many, none of which ends the request."""
        ...

    def num_allowed(self, draft: Sequence[int]) -> int:
        """Return how many tokens of a draft the grammar allows, before one that ends the answer."""
        ...

    def masks_along(self, draft: Sequence[int]) -> tuple[bytes, ...]:
        """Return `mask` as it will be after each token of a draft, up to one that may not come next.

        The position stays.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestImage:
    """One image of a prompt.

    Attributes:
        content_hash: the key of its features within one model.
        start: index of its first placeholder in the prompt; the others follow it.
        num_tokens: number of its placeholders.
        pixels: float32 [channels, height, width], as the encoder takes them; [patches, values of a patch] for
            an encoder that takes images of any size.
        token_grid: rows and columns of its placeholders, if the model takes images of any size.
    """

    content_hash: str
    start: int
    num_tokens: int
    pixels: np.ndarray[Any, Any] = dataclasses.field(compare=False, repr=False)
    token_grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One sampled completion (`n=2` is two requests).

    Attributes:
        arrival_seconds: time.monotonic() when the HTTP request arrived.
        scores_prompt: also yield the logprobs of the prompt's own tokens, with params.top_logprobs
            alternatives each; only if the bundle has score programs.
        pooling: yield the pooled hidden states of the prompt instead of an answer; params.max_tokens must be
            0. Only if the bundle has embed programs.
        cache_scope: requests with the same scope may share the pages of equal beginnings of their prompts.
            None never shares.
        tenant: whose request it is, for fairness between those who wait or need memory.
        grammar: constrains the answer; None allows any answer.
        priority: among waiting requests the lowest value goes first; see `WaitingQueue`.
        images: in the order of their placeholders; only if the bundle has an image encoder, and not in a
            scored prompt.
    """

    id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    arrival_seconds: float
    scores_prompt: bool = False
    pooling: Pooling | None = None
    cache_scope: str | None = None
    tenant: str = ""
    grammar: TokenMatcher | None = None
    priority: int = 0
    images: tuple[RequestImage, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Logprobs of one token of an answer or of a prompt, from the raw model logits."""

    logprob: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
    """Some new tokens of one request, and perhaps its end.

    Attributes:
        token_ids: new tokens, in order. If `finish_reason` is "stop", the last one is the stop token itself:
            it counts as usage and is not rendered.
        logprobs: one per token id, or None if the request asked for none.
        finish_reason: set on the last event of a request.
        error: set instead if the engine failed this request; nothing follows.
        queue_seconds: on the first event, the time from arrival to a slot.
        prompt_logprobs: those of the next tokens of the prompt, if the request scores it. All events together
            cover every prompt token except the first, before or along with the first new token.
        pooled: parts of the request's pooled hidden states, float32 in the machine's byte order. The sum of
            all parts in all events is the hidden state of the last token, or for mean pooling the sum over
            all tokens.
        num_cached_tokens: with the first new token, how many prompt tokens were found in pages of others.
        num_draft_tokens: tokens that were guessed before, and verified along with these.
        num_accepted_tokens: how many of these guesses are among `token_ids`.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    error: VinferError | None = None
    queue_seconds: float | None = dataclasses.field(default=None, compare=False)
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    num_cached_tokens: int = 0
    pooled: tuple[bytes, ...] = ()
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot for metrics; counters never decrease."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_slots: int = 0
    num_pages: int = 0
    """Of the KV cache; see `Scheduler.num_pages`."""
    kv_cache_usage_fraction: float = 0.0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    num_prefill_dispatches_total: int = 0
    num_decode_dispatches_total: int = 0
    num_overlapped_dispatches_total: int = 0
    """Dispatches enqueued before the tokens of the previous one were read."""
    num_encode_dispatches_total: int = 0
    num_images_encoded_total: int = 0
    mm_cache_queries_total: int = 0
    """Images in requests, and how many of them already had their features in the cache."""
    mm_cache_hits_total: int = 0
    mm_cache_usage_fraction: float = 0.0
    num_preemptions_total: int = 0
    prefix_cache_queries_total: int = 0
    """Prompt tokens of requests that may share pages, and how many of them were found."""
    prefix_cache_hits_total: int = 0
    spec_decode_num_drafts_total: int = 0
    """Drafts that were verified, their tokens, and how many of these were right."""
    spec_decode_num_draft_tokens_total: int = 0
    spec_decode_num_accepted_tokens_total: int = 0


class EngineClient(Protocol):
    """The engine as the server sees it; also implemented by the arithmetic fake engine of the tests."""

    @property
    def max_model_len(self) -> int: ...

    def check_room(self, tenant: str) -> None:
        """Check that a request of this tenant could be submitted now, before work is spent on it.

        Raises:
            QueueFullError, NotReadyError, EngineError: as `submit`.
        """
        ...

    def submit(self, request: Request) -> AsyncIterator[TokenEvent]:
        """Queue a request. Called on the event loop; never blocks.

        Raises:
            QueueFullError: as many requests are waiting as may, of all tenants or of this one.
            NotReadyError: the engine is stopping.
            EngineError: the engine is dead.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """Drop a running or waiting request; unknown ids are ignored. No event follows."""
        ...

    def stats(self) -> EngineStats: ...

    @property
    def limits(self) -> TenantLimits: ...

    def set_limits(self, limits: TenantLimits) -> None: ...

    @property
    def is_alive(self) -> bool: ...

    @property
    def step_seconds(self) -> float:
        """The age of the current step; 0 while there is nothing to do."""
        ...

    def give_up(self) -> None:
        """Fail all requests of an engine whose step does not come back; it is dead from then on."""
        ...
