"""What the scheduler decides in one step, frozen: admissions, an encode, prefills, a decode.

Pure data, from the scheduler to the runner. Every dispatch carries the requests that own its rows.
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
        copied_from: the slot that holds the prompt's rows before `start`; they are copied from there first,
            or stay where they are in the same slot. None where this request has prefilled them itself.
        feature_rows: of each token, the row of the feature array that takes its place, or -1; empty where
            the request has no images.
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
        """Whether the first token of the answer comes of it."""
        return self.is_final and self.request.params.max_tokens > 0


@dataclasses.dataclass(frozen=True, slots=True)
class Encode:
    """One dispatch of the image encoder; `rows[i]` are the rows of the feature array for `images[i]`."""

    shape: ProgramShape
    images: tuple[RequestImage, ...]
    rows: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Prefill:
    """One prefill dispatch; a score or embed dispatch where its requests ask for that (`_kind`)."""

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
    """Work in the order in which it must be enqueued: admissions, encode, prefills, decode."""

    admissions: tuple[Admission, ...] = ()
    encode: Encode | None = None
    prefills: tuple[Prefill, ...] = ()
    decode: Decode | None = None

    def __bool__(self) -> bool:
        return bool(self.admissions or self.encode or self.prefills or self.decode)
