"""The scheduler's decisions in one step, frozen: admissions, an encode, prefills, a decode.

Pure data, passed from the scheduler to the runner. Every dispatch carries the requests that own its rows.
"""

from __future__ import annotations

import dataclasses

from vinfer.bundle.programs import ProgramShape
from vinfer.engine.kv_cache.pages import PageCopy
from vinfer.engine.request import Request, RequestImage


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """Write a request's row into its slot.

    Attributes:
        outputs: the tokens of its answer so far, if it was preempted.
    """

    slot: int
    request: Request
    outputs: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of one prompt, or of the answer so far of a preempted request.

    Attributes:
        start: position of the first token.
        next_token: the token that follows the chunk; None if there is none yet.
        pages: the request's page table, by group (see `PageTable`), with pages for these tokens.
        shard: the dp shard of its pages.
        num_cached: positions of the prompt that were in pages of others.
        copy: a page to copy before the chunk is written.
        feature_rows: for each token, the row of the feature array that replaces it, or -1; empty if the
            request has no images.
    """

    slot: int
    request: Request
    start: int
    tokens: tuple[int, ...]
    next_token: int | None
    pages: tuple[tuple[int, ...], ...]
    shard: int = 0
    num_cached: int = 0
    copy: PageCopy | None = None
    feature_rows: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def is_final(self) -> bool:
        return self.next_token is None

    @property
    def samples(self) -> bool:
        """Whether it yields the first token of the answer."""
        return self.is_final and self.request.params.max_tokens > 0


@dataclasses.dataclass(frozen=True, slots=True)
class Encode:
    """One dispatch of the image encoder; `rows[i]` are the rows of the feature array for `images[i]`."""

    shape: ProgramShape
    images: tuple[RequestImage, ...]
    rows: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Prefill:
    """One prefill dispatch; a score or embed dispatch if its requests ask for that (`shape.kind`)."""

    shape: ProgramShape
    chunks: tuple[Chunk, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Decode:
    """One multi-step decode dispatch; `owners[i]` is the request whose tokens row i yields.

    Attributes:
        pages: the page table of each row, by group, with pages for every step.
    """

    shape: ProgramShape
    slots: tuple[int, ...]
    owners: tuple[Request, ...]
    pages: tuple[tuple[tuple[int, ...], ...], ...]
    step_limit: int


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Work to enqueue in this order: admissions, encode, prefills, decode."""

    admissions: tuple[Admission, ...] = ()
    encode: Encode | None = None
    prefills: tuple[Prefill, ...] = ()
    decode: Decode | None = None

    def __bool__(self) -> bool:
        return bool(self.admissions or self.encode or self.prefills or self.decode)
