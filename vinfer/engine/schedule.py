"""The scheduler's decisions in one step, frozen: admissions, an encode, prefills, a decode.

Pure data, passed from the scheduler to the runner. Every dispatch carries the requests that own its rows.
"""

from __future__ import annotations

import dataclasses

from vinfer.bundle.programs import ProgramShape
from vinfer.engine.request import Request, RequestImage


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """Write a request's row into its slot."""

    slot: int
    request: Request


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of one prompt.

    Attributes:
        copied_from: the slot that holds the prompt's rows before `start`. They are copied from there first,
            or reused in place if it is the same slot. None if this request prefilled them itself.
        feature_rows: for each token, the row of the feature array that replaces it, or -1; empty if the
            request has no images.
    """

    slot: int
    request: Request
    start: int
    length: int
    copied_from: int | None = None
    feature_rows: tuple[int, ...] = ()

    @property
    def is_final(self) -> bool:
        return self.start + self.length == len(self.request.prompt_ids)

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
    """One multi-step decode dispatch; `owners[i]` is the request whose tokens row i yields."""

    shape: ProgramShape
    slots: tuple[int, ...]
    owners: tuple[Request, ...]
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
