"""With one shape of each kind, a request goes through the same dispatches alone and batched."""

from __future__ import annotations

import dataclasses

import pytest
from engine_requests import MAX_MODEL_LEN, STEPS, make_pages, make_request
from hypothesis import given
from hypothesis import strategies as st

from vinfer.bundle.program_table import ProgramTable
from vinfer.bundle.programs import ProgramShape, plan_programs
from vinfer.engine.request import Request
from vinfer.engine.scheduler import Scheduler

LENGTH = 8
NUM_SLOTS = 3
BEGINNINGS = {"a": 5, "b": 8, "c": 17, "d": 40}
"""Tokens that the prompts of a scope have in common."""


def single_shapes(**kinds: bool) -> tuple[ProgramShape, ...]:
    return plan_programs(prefill_shapes=[(1, LENGTH)], slot_buckets=(NUM_SLOTS,), steps=STEPS, **kinds)


def make_scheduler(
    page_size: int = 4, num_pages: int | None = None, windows: tuple[int | None, ...] = (None,), **kinds: bool
) -> Scheduler:
    return Scheduler(
        programs=ProgramTable(single_shapes(**kinds)),
        num_slots=NUM_SLOTS,
        pages=make_pages(NUM_SLOTS, num_pages, page_size=page_size, windows=windows),
    )


@dataclasses.dataclass
class Seen:
    """The dispatches of a request: (shape, start, length) of its prompt, and the shapes of its decodes."""

    chunks: list[tuple[ProgramShape, int, int]] = dataclasses.field(default_factory=list)
    decodes: set[ProgramShape] = dataclasses.field(default_factory=set)
    num_cached: int = 0


def run(scheduler: Scheduler, requests: list[Request], joins_at: list[int]) -> dict[str, Seen]:
    """Run requests, each submitted before its step; found pages count as the chunks that filled them."""
    seen = {request.id: Seen() for request in requests}
    left = {request.id: request.params.max_tokens for request in requests}
    waiting = sorted(zip(joins_at, requests, strict=True), key=lambda pair: pair[0])
    step = 0
    while waiting or scheduler.num_waiting or scheduler.num_running:
        while waiting and waiting[0][0] <= step:
            scheduler.submit(waiting.pop(0)[1])
        schedule = scheduler.schedule()
        scheduler.check_integrity()
        step += 1
        for prefill in schedule.prefills:
            (chunk,) = prefill.chunks
            chunks = seen[chunk.request.id].chunks
            # What is skipped was computed in whole chunks, or it would have other bits.
            for start in range(sum(length for _, _, length in chunks), chunk.start, LENGTH):
                chunks.append((prefill.shape, start, LENGTH))
            assert sum(length for _, _, length in chunks) == chunk.start
            chunks.append((prefill.shape, chunk.start, chunk.length))
            seen[chunk.request.id].num_cached = chunk.num_cached
            left[chunk.request.id] -= chunk.samples
        if schedule.decode is not None:
            for owner in schedule.decode.owners:
                seen[owner.id].decodes.add(schedule.decode.shape)
                left[owner.id] -= schedule.decode.step_limit
        for request in requests:
            if scheduler.is_running(request.id) and left[request.id] <= 0:
                scheduler.finish(request.id)
    assert scheduler.num_preemptions == 0
    return seen


@st.composite
def crowds(draw: st.DrawFn) -> tuple[list[Request], list[int]]:
    requests = []
    for place in range(draw(st.integers(1, 9))):
        scope = draw(st.sampled_from((None, *BEGINNINGS)))
        tail = tuple(range(100, 100 + draw(st.integers(0, 10))))
        beginning = tuple(range(BEGINNINGS[scope])) if scope else tuple(range(draw(st.integers(1, 30))))
        scores = draw(st.booleans()) and scope is None
        requests.append(
            make_request(
                f"r{place}", (*beginning, *tail), draw(st.integers(1, 14)), scope=scope, scores_prompt=scores
            )
        )
    return requests, [draw(st.integers(0, 12)) for _ in requests]


@given(
    crowds(),
    st.integers(1, 12),
    st.sampled_from((0, 1, 100)),
    st.sampled_from(((None,), (None, 5), (5,))),
)
def test_every_request_goes_through_what_it_goes_through_alone(
    crowd: tuple[list[Request], list[int]],
    page_size: int,
    spare_pages: int,
    windows: tuple[int | None, ...],
) -> None:
    """Also where memory is short: nobody is preempted, because all memory is promised in advance."""
    requests, joins_at = crowd
    num_pages = -(-MAX_MODEL_LEN // page_size) + spare_pages

    def scheduler() -> Scheduler:
        return make_scheduler(page_size, num_pages, windows, prompt_logprobs=True)

    together = run(scheduler(), requests, joins_at)
    for request in requests:
        alone = run(scheduler(), [request], [0])[request.id]
        assert together[request.id].chunks == alone.chunks
        assert together[request.id].decodes == alone.decodes


@pytest.mark.parametrize(
    ("page_size", "prompt_len", "num_common", "num_cached"),
    [
        (4, 40, 40, 32),  # the last chunk is prefilled as it would be alone
        (4, 17, 17, 16),
        (4, 16, 16, 8),
        (4, 40, 15, 8),  # three pages are equal, and one chunk
        (4, 40, 16, 16),
        (3, 40, 40, 24),  # page and chunk end together at 24
        (3, 17, 17, 0),  # five pages end at 15, which is no end of a chunk
        (16, 25, 25, 24),  # half a page is copied
        (16, 40, 40, 32),
        (16, 9, 9, 8),
    ],
)
def test_prompts_share_whole_chunks(
    page_size: int, prompt_len: int, num_common: int, num_cached: int
) -> None:
    requests = [
        make_request("first", prompt_len, scope="s"),
        make_request("second", (*range(num_common), *range(100, 100 + prompt_len - num_common)), scope="s"),
    ]
    assert run(make_scheduler(page_size), requests, [0, 20])["second"].num_cached == num_cached
    # It makes no difference whether the first is still being prefilled.
    assert run(make_scheduler(page_size), requests, [0, 0])["second"].num_cached == num_cached


def test_a_request_waits_for_the_memory_of_its_whole_answer() -> None:
    """16 pages of 4; each request needs 2 for its prompt, and 7 more until its end."""
    scheduler = make_scheduler(num_pages=16)
    for name in "ab":
        scheduler.submit(make_request(name, 8, max_tokens=28))
    assert [admission.request.id for admission in scheduler.schedule().admissions] == ["a"]
    assert scheduler.num_waiting == 1
    while scheduler.schedule():
        scheduler.check_integrity()
    scheduler.finish("a")
    assert [admission.request.id for admission in scheduler.schedule().admissions] == ["b"]


def test_no_answer_is_found_by_other_prompts() -> None:
    """The bits of decoding are not those of prefill."""
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 8, max_tokens=20, scope="s"))
    for _ in range(4):
        scheduler.schedule()
    scheduler.observe("a", range(8, 20))
    scheduler.finish("a")
    seen = run(scheduler, [make_request("b", 25, scope="s")], [0])
    assert seen["b"].num_cached == 8


def test_there_is_a_single_shape_where_each_kind_has_one() -> None:
    assert ProgramTable(single_shapes(prompt_logprobs=True, embeddings=True)).is_single_shape
    assert not ProgramTable(
        plan_programs(prefill_shapes=[(1, 8)], slot_buckets=(1, 2), steps=1)
    ).is_single_shape
    assert not ProgramTable(
        plan_programs(prefill_shapes=[(2, 8)], slot_buckets=(2,), steps=1)
    ).is_single_shape
