"""Requests and program shapes for the engine tests, with numbers small enough to check by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from vinfer.bundle.kv_pages import PageGroup, PagePlan
from vinfer.bundle.manifest import Pooling
from vinfer.bundle.program_table import ProgramTable
from vinfer.bundle.programs import ProgramShape, plan_programs
from vinfer.engine.kv_cache.pages import ShardPages
from vinfer.engine.request import Request, RequestImage, SamplingParams, TokenMatcher
from vinfer.errors import RequestError

MAX_MODEL_LEN = 64
STEPS = 4
DRAFT_TOKENS = 5
MAX_VERIFY_ROWS = 3
PAGE_SIZE = 4
IMAGE_LENS = {"p": 3, "q": 5, "r": 9, "s": 16, "t": 30}
"""Number of tokens of an image, by its content hash."""


def make_request(
    name: str,
    prompt_ids: tuple[int, ...] | int,
    max_tokens: int = 3,
    stop: tuple[int, ...] = (),
    *,
    scope: str | None = None,
    tenant: str = "",
    scores_prompt: bool = False,
    pooling: Pooling | None = None,
    grammar: TokenMatcher | None = None,
    priority: int = 0,
    images: Sequence[tuple[int, str]] = (),
) -> Request:
    """Return a request; a number as its prompt means the tokens 0, 1, 2, ... of that length.

    Args:
        images: (start, content hash) of each image, which takes `IMAGE_LENS[hash]` tokens.
    """
    if isinstance(prompt_ids, int):
        prompt_ids = tuple(range(prompt_ids))
    params = SamplingParams(max_tokens=max_tokens, stop_token_ids=stop)
    return Request(
        id=name,
        prompt_ids=prompt_ids,
        params=params,
        arrival_seconds=0.0,
        cache_scope=scope,
        tenant=tenant,
        scores_prompt=scores_prompt,
        pooling=pooling,
        grammar=grammar,
        priority=priority,
        images=tuple(make_image(content_hash, start) for start, content_hash in images),
    )


def make_image(content_hash: str, start: int = 0) -> RequestImage:
    """Return an image without pixels, because nothing here reads them."""
    return RequestImage(
        content_hash=content_hash,
        start=start,
        num_tokens=IMAGE_LENS[content_hash],
        pixels=np.zeros(0, np.float32),
    )


class CountingMatcher:
    """A grammar that accepts every token, up to one that exceeds its limits.

    Attributes:
        taken: the tokens that it was advanced by.
        mask: their number.

    Args:
        forces: the tokens that must come next, wherever it is.
        forbids: the only token that it does not allow.
    """

    def __init__(
        self, breaks_at: int | None = None, *, forces: Sequence[int] = (), forbids: int | None = None
    ) -> None:
        self.taken: list[int] = []
        self.mask = b"0"
        self._breaks_at = breaks_at
        self._forces = tuple(forces)
        self._forbids = forbids

    def advance(self, token_ids: Sequence[int]) -> None:
        self.taken += token_ids
        self.mask = str(len(self.taken)).encode()
        if self._breaks_at is not None and len(self.taken) >= self._breaks_at:
            raise RequestError("the.field cannot be followed further", param="the.field")

    def forced(self, max_tokens: int) -> tuple[int, ...]:
        return self._forces[:max_tokens]

    def num_allowed(self, draft: Sequence[int]) -> int:
        return next((place for place, token in enumerate(draft) if token == self._forbids), len(draft))

    def masks_along(self, draft: Sequence[int]) -> tuple[bytes, ...]:
        return tuple(str(len(self.taken) + place).encode() for place in range(1, len(draft) + 1))


def make_shapes(
    prefill_shapes: tuple[tuple[int, int], ...] = ((1, 4), (1, 8)),
    num_slots: int = 2,
    encoders: Sequence[int] = (),
) -> tuple[ProgramShape, ...]:
    """Return compiled programs, with decode for 1 and for all slots, and verify for 1 and some.

    Args:
        encoders: number of images of each image encoder.
    """
    return plan_programs(
        prefill_shapes=prefill_shapes,
        slot_buckets={1, num_slots},
        steps=STEPS,
        prompt_logprobs=True,
        embeddings=True,
        vision_shapes=[(rows, 3, 8, 8) for rows in encoders],
        verify_buckets={1, min(num_slots, MAX_VERIFY_ROWS)},
        draft_tokens=DRAFT_TOKENS,
    )


def make_programs(
    prefill_shapes: tuple[tuple[int, int], ...] = ((1, 4), (1, 8)),
    num_slots: int = 2,
    encoders: Sequence[int] = (),
) -> ProgramTable:
    """Return what chooses among `make_shapes`."""
    shapes = make_shapes(prefill_shapes, num_slots, encoders)
    return ProgramTable(shapes, make_max_features(shapes))


def make_max_features(
    shapes: Iterable[ProgramShape], several_at_most: int = max(IMAGE_LENS.values())
) -> dict[ProgramShape, int]:
    """Let the image encoder with the fewest rows take every image, and the others those up to a limit."""
    encoders = sorted((s for s in shapes if s.kind == "encode_images"), key=lambda shape: shape.rows)
    limits = dict.fromkeys(encoders, several_at_most)
    return limits | {shape: max(IMAGE_LENS.values()) for shape in encoders[:1]}


def make_pages(
    num_slots: int,
    num_pages: int | None = None,
    *,
    page_size: int = PAGE_SIZE,
    windows: Sequence[int | None] = (None,),
    dp: int = 1,
    max_write_len: int = 8,
) -> list[ShardPages]:
    """Return the pages of each dp shard, as many of each group as `PagePlan` says.

    Args:
        num_pages: of the first group in each shard; None for as many as all slots can need.
        max_write_len: most tokens of one prefill chunk or decode dispatch.
    """
    plan = PagePlan(
        page_size=page_size,
        max_model_len=MAX_MODEL_LEN,
        num_slots=num_slots // dp,
        max_write_len=max_write_len,
        groups=tuple(PageGroup(window, page_bytes=1) for window in windows),
    )
    counts = plan.most_pages() if num_pages is None else plan.with_pages(num_pages)
    return [
        ShardPages(
            shard,
            counts,
            windows=windows,
            page_size=page_size,
            pages_of_row=plan.pages_of_row(plan.groups[0]),
        )
        for shard in range(dp)
    ]
