"""The scheduler's decisions, case by case, for prompts that share nothing and memory for all.

Shared beginnings of prompts: test_shared_prefixes.py. Too little memory: test_preemption.py. Random sequences
of operations: test_scheduler_sequences.py.
"""

from __future__ import annotations

import pytest
from engine_requests import PAGE_SIZE, STEPS, make_pages, make_programs, make_request
from schedule_contents import admitted, decoded, encoded, prefilled

from vinfer.engine import prefills
from vinfer.engine.running import Running
from vinfer.engine.scheduler import Scheduler


def make_scheduler(
    num_slots: int = 2,
    prefill_shapes: tuple[tuple[int, int], ...] = ((1, 4), (1, 8)),
    min_prefill_tokens: int = 0,
    dispatch_cost_tokens: int | None = None,
) -> Scheduler:
    return Scheduler(
        programs=make_programs(prefill_shapes, num_slots),
        num_slots=num_slots,
        pages=make_pages(num_slots),
        min_prefill_tokens=min_prefill_tokens,
        dispatch_cost_tokens=dispatch_cost_tokens,
    )


def test_requests_take_the_lowest_free_slot_in_order_of_arrival() -> None:
    scheduler = make_scheduler()
    for name in "abcde":
        scheduler.submit(make_request(name, 1))
    assert admitted(scheduler.schedule()) == [("a", 0), ("b", 1)]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 3)
    assert admitted(scheduler.schedule()) == []
    scheduler.finish("b")
    assert admitted(scheduler.schedule()) == [("c", 1)]
    scheduler.finish("c")
    scheduler.finish("a")
    assert admitted(scheduler.schedule()) == [("d", 0), ("e", 1)]
    assert scheduler.is_running("d")
    assert not scheduler.is_running("a")
    assert scheduler.num_waiting == 0
    scheduler.check_integrity()


def test_waiting_requests_go_by_priority_then_arrival_and_none_loses_its_slot() -> None:
    scheduler = make_scheduler()
    for name, priority in (("a", 5), ("b", 5)):
        scheduler.submit(make_request(name, 1, priority=priority))
    assert admitted(scheduler.schedule()) == [("a", 0), ("b", 1)]
    waiting = (("c", 0), ("d", 1), ("e", -1), ("f", 0), ("g", 1), ("h", -1), ("i", 0))
    for name, priority in waiting:
        scheduler.submit(make_request(name, 1, priority=priority))
    assert admitted(scheduler.schedule()) == []
    assert scheduler.is_running("a")
    scheduler.finish("f")
    scheduler.finish("a")
    order = ["b"]
    for _ in waiting[1:]:
        scheduler.finish(order[-1] if len(order) > 1 else "a")
        order += [name for name, _ in admitted(scheduler.schedule())]
    assert order == ["b", "e", "h", "c", "i", "d", "g"]
    scheduler.submit(make_request("j", 1))
    assert set(scheduler.drop_all()) == {"b", "g", "j"}
    scheduler.check_integrity()


@pytest.mark.parametrize(
    ("prompt_len", "expected"),
    [
        (1, [(4, 0, 1)]),
        (4, [(4, 0, 4)]),
        (5, [(8, 0, 5)]),
        (8, [(8, 0, 8)]),
        (9, [(8, 0, 8), (4, 8, 1)]),
        (12, [(8, 0, 8), (4, 8, 4)]),
        (13, [(8, 0, 8), (8, 8, 5)]),
        (16, [(8, 0, 8), (8, 8, 8)]),
        (17, [(8, 0, 8), (8, 8, 8), (4, 16, 1)]),
    ],
)
def test_a_long_prompt_goes_in_chunks_of_the_largest_bucket(
    prompt_len: int, expected: list[tuple[int, int, int]]
) -> None:
    """Each row is (padded length, start, length); a chunk has the pages of all tokens up to its end."""
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", prompt_len, max_tokens=1))
    chunks = []
    while schedule := scheduler.schedule():
        for prefill in schedule.prefills:
            (chunk,) = prefill.chunks
            end = chunk.start + chunk.length
            assert [len(pages) for pages in chunk.pages] == [-(-end // PAGE_SIZE)]
            assert chunk.tokens == tuple(range(chunk.start, end))
            assert chunk.next_token == (None if end == prompt_len else end)
            assert chunk.is_final == (end == prompt_len)
            chunks.append((prefill.shape.length, chunk.start, chunk.length))
    assert chunks == expected


def test_decoding_waits_for_one_bucket_of_prompt_tokens_at_most() -> None:
    scheduler = make_scheduler(num_slots=5)
    scheduler.submit(make_request("old", 2, max_tokens=50))
    scheduler.schedule()
    for name, prompt_len in (("a", 3), ("b", 4), ("c", 2), ("d", 7)):
        scheduler.submit(make_request(name, prompt_len))
    # 4 + 4 padded tokens fill the budget of 8, which is the largest bucket.
    assert prefilled(first := scheduler.schedule()) == [(1, 4, [("a", 0, 3)]), (1, 4, [("b", 0, 4)])]
    assert decoded(first) == (["old", "a", "b"], 1)
    # 4 + 8 would be too many, so d waits for the next decode dispatch.
    assert prefilled(second := scheduler.schedule()) == [(1, 4, [("c", 0, 2)])]
    assert decoded(second) == (["old", "a", "b", "c"], 1)
    assert prefilled(third := scheduler.schedule()) == [(1, 8, [("d", 0, 7)])]
    assert decoded(third) == (["old", "c", "d"], STEPS)


def test_a_dispatch_larger_than_the_budget_goes_alone() -> None:
    """Two prompts of 8 tokens use one program of 16 tokens, and nothing else is scheduled with it."""
    scheduler = make_scheduler(num_slots=4, prefill_shapes=((1, 4), (1, 8), (2, 8)))
    for name, prompt_len in (("a", 6), ("b", 6), ("c", 2), ("d", 6)):
        scheduler.submit(make_request(name, prompt_len))
    assert prefilled(scheduler.schedule()) == [(2, 8, [("a", 0, 6), ("b", 0, 6)])]
    assert prefilled(scheduler.schedule()) == [(1, 4, [("c", 0, 2)])]
    assert prefilled(scheduler.schedule()) == [(1, 8, [("d", 0, 6)])]


@pytest.mark.parametrize(
    ("prefill_shapes", "prompt_lens", "expected"),
    [
        # Two of the same bucket share a dispatch; a third one goes alone.
        (((1, 4), (1, 8), (2, 4)), (3, 1, 2), [(2, 4, ["a", "b"]), (1, 4, ["c"])]),
        # A prompt of another bucket takes the row that is left, and then goes on with the next one.
        (((1, 4), (1, 8), (2, 4)), (3, 7, 2), [(2, 4, ["a", "b"]), (2, 4, ["b", "c"])]),
        # Three fit into a program of four.
        (((1, 4), (1, 8), (4, 4)), (3, 3, 3), [(4, 4, ["a", "b", "c"])]),
        # No program of several prompts has this bucket.
        (((1, 4), (1, 8), (2, 4)), (5, 6), [(1, 8, ["a"]), (1, 8, ["b"])]),
        # A longer program would pad each short prompt to twice its bucket.
        (((1, 4), (1, 8), (2, 8)), (3, 3), [(1, 4, ["a"]), (1, 4, ["b"])]),
    ],
)
def test_prompts_of_equal_buckets_share_a_dispatch(
    prefill_shapes: tuple[tuple[int, int], ...],
    prompt_lens: tuple[int, ...],
    expected: list[tuple[int, int, list[str]]],
) -> None:
    scheduler = make_scheduler(num_slots=4, prefill_shapes=prefill_shapes)
    for name, prompt_len in zip("abc", prompt_lens, strict=False):
        scheduler.submit(make_request(name, prompt_len, max_tokens=1))
    dispatches = []
    while schedule := scheduler.schedule():
        dispatches += [
            (rows, length, [name for name, _, _ in chunks]) for rows, length, chunks in prefilled(schedule)
        ]
    assert dispatches == expected


def test_prompts_behind_a_full_dispatch_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step would cost more the more prompts wait."""
    looked_at = []
    next_span = prefills.PrefillPlanner._next_span

    def noted(planner: prefills.PrefillPlanner, running: Running, awaited: set[bytes]) -> object:
        looked_at.append(running.request.id)
        return next_span(planner, running, awaited)

    monkeypatch.setattr(prefills.PrefillPlanner, "_next_span", noted)
    scheduler = make_scheduler(num_slots=8, prefill_shapes=((1, 8), (2, 4)))
    for number in range(8):
        scheduler.submit(make_request(f"request {number}", [number] * 3))
    assert prefilled(scheduler.schedule()) == [(2, 4, [("request 0", 0, 3), ("request 1", 0, 3)])]
    assert set(looked_at) == {"request 0", "request 1"}


def test_a_long_prompt_takes_several_rows() -> None:
    shapes = ((1, 4), (1, 8), (4, 4))
    scheduler = make_scheduler(2, shapes, min_prefill_tokens=16, dispatch_cost_tokens=4)
    scheduler.submit(make_request("a", 27))
    scheduler.submit(make_request("b", 5))
    rows = [("a", 0, 4), ("a", 4, 4), ("a", 8, 4), ("a", 12, 4)]
    assert prefilled(scheduler.schedule()) == [(4, 4, rows)]
    # One padded token costs less than two more dispatches.
    rest = [("a", 16, 4), ("a", 20, 4), ("a", 24, 3), ("b", 0, 4)]
    assert prefilled(scheduler.schedule()) == [(4, 4, rest)]
    assert prefilled(scheduler.schedule()) == [(1, 4, [("b", 4, 1)])]


def test_a_dispatch_of_several_rows_stays_within_the_budget() -> None:
    scheduler = make_scheduler(num_slots=2, prefill_shapes=((1, 4), (1, 8), (4, 4)))
    scheduler.submit(make_request("a", 16))
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 0, 8)])]


def test_what_attention_reads_counts_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later chunks of a long prompt cost more, so fewer of them lie between two decode dispatches."""
    monkeypatch.setattr(prefills, "_READ_PER_TOKEN", 64)
    scheduler = make_scheduler(num_slots=2, prefill_shapes=((1, 4), (1, 8), (4, 4)), min_prefill_tokens=20)
    scheduler.submit(make_request("a", 32))
    # 16 padded tokens and 2 for reading; then it would be 16 and 6.
    rows = [("a", start, 4) for start in range(0, 16, 4)]
    assert prefilled(scheduler.schedule()) == [(4, 4, rows)]
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 16, 8)])]
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 24, 8)])]


def test_padding_decides_between_rows_and_a_chunk() -> None:
    """Four rows of 4 for 7 tokens cost twice as much as one of 8."""
    scheduler = make_scheduler(num_slots=2, prefill_shapes=((1, 4), (1, 8), (4, 4)), min_prefill_tokens=16)
    scheduler.submit(make_request("a", 7))
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 0, 7)])]


def test_a_prompt_with_images_takes_one_row() -> None:
    """An image may have to lie in one row."""


def test_decode_runs_one_step_while_anything_waits_or_is_prefilled() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 1, max_tokens=50))
    assert decoded(scheduler.schedule()) == (["a"], STEPS)
    scheduler.submit(make_request("long", 20, max_tokens=50))
    assert decoded(scheduler.schedule()) == (["a"], 1)
    assert decoded(scheduler.schedule()) == (["a"], 1)
    assert decoded(scheduler.schedule()) == (["a", "long"], STEPS)
    scheduler.submit(make_request("waiting", 1))
    assert decoded(scheduler.schedule()) == (["a", "long"], 1)
    scheduler.finish("waiting")
    assert decoded(scheduler.schedule()) == (["a", "long"], STEPS)


@pytest.mark.parametrize(
    ("max_tokens", "step_limits"), [(1, []), (2, [1]), (5, [4]), (6, [4, 1]), (9, [4, 4]), (12, [4, 4, 3])]
)
def test_no_step_is_dispatched_beyond_max_tokens(max_tokens: int, step_limits: list[int]) -> None:
    """The first token comes from the prefill."""
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 2, max_tokens=max_tokens))
    limits = []
    while schedule := scheduler.schedule():
        if schedule.decode is not None:
            limits.append(schedule.decode.step_limit)
    assert limits == step_limits
    # Its tokens are not read yet, so it still has its slot.
    assert scheduler.is_running("a")
    # The newest token is not written.
    num_positions = 2 + max_tokens - 1
    assert scheduler.kv_usage_fraction == -(-num_positions // PAGE_SIZE) / 32


def test_a_request_leaves_the_dispatches_when_all_its_tokens_are_on_the_way() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request("short", 1, max_tokens=3))
    scheduler.submit(make_request("long", 1, max_tokens=8))
    assert decoded(scheduler.schedule()) == (["short", "long"], 4)
    schedule = scheduler.schedule()
    assert decoded(schedule) == (["long"], 3)
    assert schedule.decode is not None
    assert schedule.decode.slots == (1,)
    assert schedule.decode.shape.rows == 1
    assert not scheduler.schedule()


def test_decode_has_pages_as_far_as_its_last_step_writes() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 4, max_tokens=20))
    num_pages = []
    while schedule := scheduler.schedule():
        if schedule.decode is not None:
            ((pages,),) = schedule.decode.pages
            assert len(set(pages)) == len(pages)
            num_pages.append(len(pages))
    # Positions written after each dispatch: 8, 12, 16, 20, 23.
    assert num_pages == [2, 3, 4, 5, 6]
    assert scheduler.kv_usage_fraction == 6 / 32


def test_cancel_while_waiting() -> None:
    scheduler = make_scheduler(num_slots=1)
    for name in "abc":
        scheduler.submit(make_request(name, 1))
    scheduler.schedule()
    scheduler.finish("b")
    scheduler.check_integrity()
    scheduler.finish("a")
    assert admitted(scheduler.schedule()) == [("c", 0)]


def test_cancel_while_prefilling() -> None:
    scheduler = make_scheduler(num_slots=1)
    scheduler.submit(make_request("a", 20))
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 0, 8)])]
    scheduler.finish("a")
    scheduler.check_integrity()
    assert not scheduler.schedule()
    scheduler.submit(make_request("b", 3))
    schedule = scheduler.schedule()
    assert admitted(schedule) == [("b", 0)]
    assert prefilled(schedule) == [(1, 4, [("b", 0, 3)])]


def test_cancel_while_decoding() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 1, max_tokens=50))
    scheduler.submit(make_request("b", 1, max_tokens=50))
    scheduler.schedule()
    scheduler.finish("a")
    scheduler.finish("a")
    scheduler.finish("never seen")
    scheduler.check_integrity()
    schedule = scheduler.schedule()
    assert decoded(schedule) == (["b"], STEPS)
    assert schedule.decode is not None
    assert schedule.decode.slots == (1,)


def test_drop_all_names_running_and_waiting_requests() -> None:
    scheduler = make_scheduler(num_slots=1)
    for name in "abc":
        scheduler.submit(make_request(name, 1))
    scheduler.schedule()
    assert scheduler.drop_all() == ["a", "b", "c"]
    scheduler.check_integrity()
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.kv_usage_fraction) == (0, 0, 0)
    assert not scheduler.schedule()


def test_scored_prompts_run_their_own_programs_alone() -> None:
    scheduler = make_scheduler(num_slots=3, prefill_shapes=((1, 4), (3, 8)))
    scheduler.submit(make_request("a", 8))
    scheduler.submit(make_request("b", 9, scores_prompt=True, scope="p"))
    scheduler.submit(make_request("c", 8))
    first = scheduler.schedule()
    assert [(work.shape.kind, [chunk.request.id for chunk in work.chunks]) for work in first.prefills] == [
        ("prefill", ["a", "c"])
    ]
    works = [work for _ in range(2) for work in scheduler.schedule().prefills]
    assert [(work.shape.name, work.chunks[0].length) for work in works] == [
        ("score[1,8]", 8),
        ("score[1,4]", 1),
    ]


def test_embedded_prompts_share_dispatches_with_each_other_only() -> None:
    scheduler = make_scheduler(num_slots=4, prefill_shapes=((1, 4), (3, 8)))
    scheduler.submit(make_request("a", 8, max_tokens=0, pooling="mean", scope="p"))
    scheduler.submit(make_request("b", 9))
    scheduler.submit(make_request("c", 8, max_tokens=0, pooling="last", scope="p"))
    scheduler.submit(make_request("d", 12, max_tokens=0, pooling="mean"))
    works = [work for _ in range(3) for work in scheduler.schedule().prefills]
    assert [(work.shape.name, [(c.request.id, c.length) for c in work.chunks]) for work in works] == [
        ("embed[3,8]", [("a", 8), ("c", 8), ("d", 8)]),
        ("prefill[1,8]", [("b", 8)]),
        ("prefill[1,4]", [("b", 1)]),
        ("embed[1,4]", [("d", 4)]),
    ]
    assert scheduler.schedule().prefills == ()


def test_a_request_without_tokens_ends_with_its_prompt() -> None:
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 9, max_tokens=0))
    for _ in range(2):
        schedule = scheduler.schedule()
        assert schedule.decode is None
    assert [chunk.samples for work in schedule.prefills for chunk in work.chunks] == [False]
    assert not scheduler.schedule()


def image_scheduler(
    num_slots: int = 3, num_feature_rows: int = 64, *, keeps_images_whole: bool = False
) -> Scheduler:
    """Return a scheduler with image encoders for one image and for two."""
    return Scheduler(
        programs=make_programs(num_slots=num_slots, encoders=(1, 2)),
        num_slots=num_slots,
        pages=make_pages(num_slots),
        num_feature_rows=num_feature_rows,
        keeps_images_whole=keeps_images_whole,
    )


def test_a_prompt_is_prefilled_once_its_images_are_encoded() -> None:
    scheduler = image_scheduler()
    scheduler.submit(make_request("a", 14, images=[(0, "p"), (4, "q"), (10, "p")]))
    first = scheduler.schedule()
    assert encoded(first) == (2, ["p", "q"])
    assert prefilled(first) == [(1, 8, [("a", 0, 8)])]
    # Three of q's five rows are in the first chunk, and two in the second, along with p's again.
    assert first.encode is not None
    p, q = first.encode.rows
    assert first.prefills[0].chunks[0].feature_rows == (*p, -1, *q[:4])
    second = scheduler.schedule()
    assert encoded(second) is None
    assert second.prefills[0].chunks[0].feature_rows == (q[4], -1, *p, -1)
    scheduler.check_integrity()


def test_no_chunk_cuts_an_image_that_is_seen_both_ways() -> None:
    scheduler = image_scheduler(keeps_images_whole=True)
    scheduler.submit(make_request("a", 21, images=[(1, "q"), (7, "p"), (13, "q")]))
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 0, 7)])]
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 7, 6)])]
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 13, 8)])]


def test_text_is_not_held_up_by_images_and_nobody_waits_for_two_dispatches_of_them() -> None:
    """While requests decode, the encoder and the prefills take turns."""
    scheduler = image_scheduler(num_slots=5)
    scheduler.submit(make_request("old", 2, max_tokens=50))
    scheduler.schedule()
    scheduler.submit(make_request("a", 20, images=[(0, "p"), (4, "q"), (10, "r")]))
    scheduler.submit(make_request("b", 8, images=[(0, "p")]))
    scheduler.submit(make_request("c", 3))
    first = scheduler.schedule()
    assert (encoded(first), prefilled(first)) == ((2, ["p", "q"]), [])
    assert decoded(first) == (["old"], 1)
    second = scheduler.schedule()
    assert encoded(second) is None
    assert prefilled(second) == [(1, 8, [("b", 0, 8)])]
    third = scheduler.schedule()
    assert (encoded(third), prefilled(third)) == ((1, ["r"]), [])
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 0, 8)])]
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 8, 8)])]


def test_prompts_share_rows_only_if_that_gains_a_tenth() -> None:
    """The first of them would wait for the last."""
    for dispatch_cost, expected in ((0, [["a"], ["b"], ["c"]]), (6, [["a", "a", "b", "b", "c", "c"]])):
        shapes = ((1, 3), (1, 6), (6, 3))
        scheduler = make_scheduler(3, shapes, min_prefill_tokens=32, dispatch_cost_tokens=dispatch_cost)
        for name in "abc":
            scheduler.submit(make_request(name, tuple(range(ord(name), ord(name) + 6))))
        dispatches = [[name for name, _, _ in chunks] for _, _, chunks in prefilled(scheduler.schedule())]
        assert dispatches == expected


def test_a_prompt_with_images_takes_one_row_and_others_wait_for_it() -> None:
    """An image may have to lie in one row."""
    scheduler = Scheduler(
        programs=make_programs(((1, 8), (4, 4)), num_slots=2, encoders=(1,)),
        num_slots=2,
        pages=make_pages(2),
        num_feature_rows=64,
        min_prefill_tokens=16,
    )
    scheduler.submit(make_request("a", 16, images=[(0, "p")]))
    scheduler.submit(make_request("b", 16))
    schedule = scheduler.schedule()
    assert encoded(schedule) == (1, ["p"])
    assert prefilled(schedule) == [(1, 8, [("a", 0, 8)]), (1, 8, [("a", 8, 8)])]
    rows = [("b", 0, 4), ("b", 4, 4), ("b", 8, 4), ("b", 12, 4)]
    assert prefilled(scheduler.schedule()) == [(4, 4, rows)]


def test_images_wait_for_room_in_order_of_arrival() -> None:
    scheduler = image_scheduler(num_feature_rows=32)
    for name, image in (("a", "t"), ("b", "s"), ("c", "p")):
        scheduler.submit(make_request(name, 31, images=[(0, image)]))
    assert encoded(scheduler.schedule()) == (1, ["t"])
    # 30 of 32 rows belong to a until its prompt is prefilled; c, which would not fit either, is behind b.
    while not scheduler.schedule().prefills[-1].chunks[-1].is_final:
        scheduler.check_integrity()
    assert encoded(scheduler.schedule()) == (2, ["s", "p"])


def test_a_cancelled_request_gives_its_rows_back() -> None:
    scheduler = image_scheduler(num_feature_rows=32)
    scheduler.submit(make_request("a", 31, images=[(0, "t")]))
    scheduler.schedule()
    scheduler.submit(make_request("b", 31, images=[(0, "s")]))
    assert encoded(scheduler.schedule()) is None
    scheduler.finish("a")
    assert encoded(scheduler.schedule()) == (1, ["s"])
    scheduler.check_integrity()
