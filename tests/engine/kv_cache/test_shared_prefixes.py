"""Which prompts begin with the pages of others, when they wait for them, and what is copied.

Pages have 4 positions, and chunks at most 8 tokens.
"""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
from engine_requests import make_pages, make_programs, make_request
from schedule_contents import admitted, begun, decoded, prefilled

from vinfer.engine.kv_cache import prefix_keys
from vinfer.engine.request import Request
from vinfer.engine.scheduler import Scheduler


def make_scheduler(
    num_slots: int = 3,
    num_pages: int | None = None,
    *,
    prefill_shapes: tuple[tuple[int, int], ...] = ((1, 4), (1, 8)),
    windows: tuple[int | None, ...] = (None,),
    dp: int = 1,
) -> Scheduler:
    return Scheduler(
        programs=make_programs(prefill_shapes, num_slots),
        num_slots=num_slots,
        pages=make_pages(num_slots, num_pages, windows=windows, dp=dp),
    )


def run_alone(scheduler: Scheduler, request: Request) -> None:
    """Run a request to its end, without tokens of its answer being read."""
    scheduler.submit(request)
    while scheduler.schedule():
        scheduler.check_integrity()
    scheduler.finish(request.id)


def test_siblings_wait_for_one_prefill_and_copy_its_last_page() -> None:
    scheduler = make_scheduler()
    for name in "abc":
        scheduler.submit(make_request(name, 20, scope="s"))
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 0, 8)])]
    assert prefilled(scheduler.schedule()) == [(1, 8, [("a", 8, 8)])]
    # 4 padded tokens of 8 are left for b; then it decodes together with a.
    third = scheduler.schedule()
    assert prefilled(third) == [(1, 4, [("a", 16, 4)]), (1, 4, [("b", 19, 1)])]
    assert begun(third) == [("a", 16, 0, False), ("b", 19, 19, True)]
    assert decoded(third) == (["a", "b"], 1)
    fourth = scheduler.schedule()
    assert prefilled(fourth) == [(1, 4, [("c", 19, 1)])]
    assert begun(fourth) == [("c", 19, 19, True)]
    assert (scheduler.num_prefix_queries, scheduler.num_prefix_hits) == (60, 38)
    scheduler.check_integrity()


def test_siblings_have_four_pages_in_common_and_one_each() -> None:
    scheduler = make_scheduler()
    for name in "abc":
        scheduler.submit(make_request(name, 20, scope="s"))
    chunks = [chunk for _ in range(4) for work in scheduler.schedule().prefills for chunk in work.chunks]
    (pages_of_a,), (pages_of_b,), (pages_of_c,) = (chunk.pages for chunk in chunks[-3:])
    assert pages_of_a[:4] == pages_of_b[:4] == pages_of_c[:4]
    assert len({pages_of_a[4], pages_of_b[4], pages_of_c[4]}) == 3
    copies = [chunk.copy for chunk in chunks[-2:] if chunk.copy is not None]
    assert [(copy.shard, copy.targets) for copy in copies] == [(0, (pages_of_b[4],)), (0, (pages_of_c[4],))]
    # The part of b's page before its last token is as good as that of a's.
    assert copies[0].sources == (pages_of_a[4],)


def test_the_next_sibling_goes_on_where_a_cancelled_one_stopped() -> None:
    scheduler = make_scheduler()
    for name in "abc":
        scheduler.submit(make_request(name, 20, scope="s"))
    scheduler.schedule()
    scheduler.finish("a")
    assert begun(scheduler.schedule()) == [("b", 8, 8, False)]
    assert begun(scheduler.schedule()) == [("b", 16, 8, False), ("c", 19, 19, True)]


def test_pages_are_found_after_their_request_has_ended() -> None:
    scheduler = make_scheduler()
    run_alone(scheduler, make_request("a", 16, scope="s"))
    assert scheduler.kv_usage_fraction == 0
    scheduler.submit(make_request("b", 16, scope="s"))
    assert begun(scheduler.schedule()) == [("b", 15, 15, True)]


@pytest.mark.parametrize(
    ("num_common", "num_cached"),
    [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (12, 12), (15, 12), (16, 16), (18, 16), (19, 19)],
)
def test_different_prompts_share_the_full_pages_of_their_common_beginning(
    num_common: int, num_cached: int
) -> None:
    """Prompts that differ in nothing but the last token have all before it in common."""
    scheduler = make_scheduler()
    run_alone(scheduler, make_request("a", 20, scope="s"))
    tail = tuple(range(100, 120 - num_common))
    scheduler.submit(make_request("b", (*range(num_common), *tail), scope="s"))
    assert begun(scheduler.schedule())[0] == ("b", num_cached, num_cached, num_common == 19)


@pytest.mark.parametrize(
    ("prompt_len", "start"),
    [
        (4, 3),  # the part before the last token is copied
        (5, 4),  # the last token begins a page: nothing to copy
        (8, 7),
        (2, 1),
        (1, 0),
    ],
)
def test_the_last_token_of_a_prompt_is_always_computed(prompt_len: int, start: int) -> None:
    scheduler = make_scheduler()
    run_alone(scheduler, make_request("a", prompt_len, scope="s"))
    scheduler.submit(make_request("b", prompt_len, scope="s"))
    assert begun(scheduler.schedule()) == [("b", start, start, start % 4 != 0)]


def test_a_prompt_of_another_scope_or_of_none_shares_nothing() -> None:
    scheduler = make_scheduler(num_slots=4)
    scopes = {"a": "p", "b": "q", "c": None, "d": None}
    for name, scope in scopes.items():
        scheduler.submit(make_request(name, 8, scope=scope))
    chunks = [chunk for _ in range(4) for chunk in begun(scheduler.schedule())]
    assert chunks == [(name, 0, 0, False) for name in scopes]
    # Requests that may not find anything are no queries.
    assert (scheduler.num_prefix_queries, scheduler.num_prefix_hits) == (16, 0)


def test_the_answer_is_found_by_the_next_turn_of_a_conversation() -> None:
    """Prompt 0..4 and answer 5..12: the newest token has not been written when its pages are found."""
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 5, max_tokens=8, scope="s"))
    scheduler.schedule()
    scheduler.schedule()
    scheduler.observe("a", [5])
    scheduler.observe("a", [6, 7, 8, 9])
    scheduler.observe("a", [10, 11, 12])
    scheduler.finish("a")
    scheduler.submit(make_request("b", 15, scope="s"))
    assert begun(scheduler.schedule()) == [("b", 12, 12, False)]


def test_what_was_not_read_is_not_found() -> None:
    """Tokens 5..9 have been sampled, and 9 has not been written. Without 9 the second page is not known."""
    scheduler = make_scheduler()
    scheduler.submit(make_request("a", 5, max_tokens=50, scope="s"))
    scheduler.schedule()
    scheduler.observe("a", [5])
    scheduler.submit(make_request("b", 15, scope="s"))
    assert begun(scheduler.schedule())[0] == ("b", 4, 4, False)


def test_scored_and_embedded_prompts_are_computed_whole_and_leave_pages_to_others() -> None:
    scheduler = make_scheduler()
    run_alone(scheduler, make_request("a", 8, scope="s"))
    run_alone(scheduler, make_request("scored", 16, scores_prompt=True, scope="s"))
    scheduler.submit(make_request("pooled", 16, 0, pooling="mean", scope="s"))
    assert begun(scheduler.schedule()) == [("pooled", 0, 0, False)]
    scheduler.finish("pooled")
    scheduler.submit(make_request("b", 20, scope="s"))
    assert begun(scheduler.schedule()) == [("b", 16, 16, False)]


def test_a_window_needs_only_the_pages_that_it_sees() -> None:
    """With a window of 5, the token at position 16 sees 12 to 16. Older pages of that group are gone."""
    scheduler = make_scheduler(windows=(None, 5))
    run_alone(scheduler, make_request("a", 20, scope="s"))
    scheduler.submit(make_request("b", (*range(16), 99), scope="s"))
    (work,) = scheduler.schedule().prefills
    full, windowed = work.chunks[0].pages
    none = 2**31 - 1
    assert (work.chunks[0].start, len(full)) == (16, 5)
    assert [page == none for page in windowed] == [True, True, True, False, False]


def test_a_window_whose_pages_are_gone_is_computed_again() -> None:
    """Position 8 sees 4 to 8, but the window of the first request has passed its page."""
    scheduler = make_scheduler(num_slots=1, windows=(None, 5))
    run_alone(scheduler, make_request("a", 30, max_tokens=30, scope="s"))
    run_alone(scheduler, make_request("other", 30, max_tokens=30, scope="s2"))
    scheduler.submit(make_request("b", (*range(8), 99), scope="s"))
    assert begun(scheduler.schedule())[0] == ("b", 0, 0, False)


def test_prompts_in_other_shards_do_not_wait_for_each_other() -> None:
    """The second waited for the whole prefill of the first, and then could not use it."""
    scheduler = make_scheduler(num_slots=2, dp=2, prefill_shapes=((2, 8),))
    for name in "ab":
        scheduler.submit(make_request(name, 16, scope="s"))
    schedule = scheduler.schedule()
    assert admitted(schedule) == [("a", 0), ("b", 1)]
    assert begun(schedule) == [("a", 0, 0, False), ("b", 0, 0, False)]


def test_the_shard_with_most_of_a_prompt_is_chosen() -> None:
    scheduler = make_scheduler(num_slots=4, dp=2)
    scheduler.submit(make_request("other", 4))
    scheduler.submit(make_request("a", 20, scope="s"))
    for _ in range(4):
        schedule = scheduler.schedule()
    scheduler.finish("other")
    # Shard 0 has more memory, but shard 1 has the pages.
    scheduler.submit(make_request("b", 20, scope="s"))
    schedule = scheduler.schedule()
    assert admitted(schedule) == [("b", 3)]
    assert begun(schedule) == [("b", 19, 19, True)]
    assert [chunk.shard for work in schedule.prefills for chunk in work.chunks] == [1]


def test_a_prompt_waits_for_one_that_is_in_the_middle_of_a_page() -> None:
    """A chunk of 6 tokens ends within a page; the equal prompt computed the rest at the same time."""
    scheduler = make_scheduler(num_slots=2, prefill_shapes=((2, 6),))
    for name in "ab":
        scheduler.submit(make_request(name, 16, scope="s"))
    chunks = [begun(scheduler.schedule()) for _ in range(4)]
    assert chunks == [
        [("a", 0, 0, False)],
        [("a", 6, 0, False)],
        [("a", 12, 0, False)],
        [("b", 15, 15, True)],
    ]


def test_a_page_is_used_in_place_where_there_is_no_memory_for_its_copy() -> None:
    """The prompt needs all 16 pages; the engine failed, because the copied page needed another."""
    scheduler = make_scheduler(num_pages=16)
    run_alone(scheduler, make_request("a", 63, max_tokens=1, scope="s"))
    scheduler.submit(make_request("b", 63, max_tokens=1, scope="s"))
    (work,) = scheduler.schedule().prefills
    copy = work.chunks[0].copy
    assert copy is not None
    assert copy.sources == copy.targets
    scheduler.check_integrity()
    scheduler.finish("b")
    scheduler.submit(make_request("c", 63, max_tokens=1, scope="s"))
    assert begun(scheduler.schedule()) == [("c", 62, 62, True)]


def test_a_prompt_waits_when_the_page_that_it_would_copy_is_taken_in_the_same_dispatch() -> None:
    """Two pages are left, both idle. The copy of the one goes into the other."""
    scheduler = make_scheduler(num_slots=3, num_pages=16, prefill_shapes=((1, 4), (1, 8), (2, 4)))
    scheduler.submit(make_request("old", 53, max_tokens=1))
    while scheduler.schedule():
        pass
    for scope in ("s", "t"):
        run_alone(scheduler, make_request(scope, 3, max_tokens=1, scope=scope))
    for name, scope in (("b", "s"), ("c", "t")):
        scheduler.submit(make_request(name, 3, max_tokens=1, scope=scope))
    assert begun(scheduler.schedule()) == [("b", 2, 2, True)]
    assert begun(scheduler.schedule()) == [("c", 0, 0, False)]
    scheduler.check_integrity()


def test_windows_alone_are_promised_what_they_need_at_any_time() -> None:
    """Pages found before the window counted as memory that the request had; the engine failed later."""
    scheduler = make_scheduler(num_pages=6, windows=(5,))
    scheduler.submit(make_request("a", 40, max_tokens=20, scope="s"))
    for _ in range(6):
        scheduler.schedule()
    for name, last in (("b", 100), ("c", 101)):
        scheduler.submit(make_request(name, (*range(40), 1, 2, 3, last), max_tokens=9, scope="s"))
    for _ in range(4):
        scheduler.schedule()
        scheduler.check_integrity()


@pytest.mark.parametrize(
    ("images", "start"),
    [
        ([(4, "p")], 7),
        ([(5, "p")], 4),  # the copy would end within the image, the page before it does not
        ([(3, "q")], 0),  # both would
        ([(2, "q")], 0),  # the page would, and a part is copied only behind the pages before it
    ],
)
def test_a_prompt_begins_within_no_image_that_is_seen_both_ways(
    images: list[tuple[int, str]], start: int
) -> None:
    scheduler = Scheduler(
        programs=make_programs(num_slots=2, encoders=(1, 2)),
        num_slots=2,
        pages=make_pages(2),
        num_feature_rows=64,
        keeps_images_whole=True,
    )
    for name in "ab":
        scheduler.submit(make_request(name, 8, scope="s", images=images))
    chunks = [chunk for _ in range(2) for chunk in begun(scheduler.schedule())]
    assert [chunk[:2] for chunk in chunks] == [("a", 0), ("b", start)]


def test_prompts_share_no_pages_of_different_images() -> None:
    scheduler = Scheduler(
        programs=make_programs(num_slots=3, encoders=(1, 2)),
        num_slots=3,
        pages=make_pages(3),
        num_feature_rows=64,
    )
    for name, image in (("a", "q"), ("b", "q"), ("c", "p")):
        run_alone(scheduler, make_request(name, 16, scope="s", images=[(5, image)]))
    # The third finds the page before the image.
    assert (scheduler.num_prefix_queries, scheduler.num_prefix_hits) == (48, 15 + 4)


def test_a_prompt_is_hashed_once_however_long_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt that waited for pages was hashed again at each step of the others."""
    num_hashes = 0

    def counted(*contents: bytes) -> object:
        nonlocal num_hashes
        num_hashes += 1
        return hashlib.sha256(*contents)

    monkeypatch.setattr(prefix_keys, "hashlib", SimpleNamespace(sha256=counted))
    scheduler = make_scheduler(num_slots=2, num_pages=20)
    scheduler.submit(make_request("a", 40, max_tokens=36, scope="s"))
    while scheduler.kv_usage_fraction < 0.8:
        scheduler.schedule()
    # Ten of its 15 pages are those of a. Four are free, and five are needed.
    scheduler.submit(make_request("b", 60, max_tokens=4, scope="s"))
    num_steps = 0
    while scheduler.schedule():
        num_steps += 1
        assert not scheduler.is_running("b")
    assert num_steps > 5
    scheduler.finish("a")
    while scheduler.schedule():
        pass
    assert scheduler.is_running("b")
    # The scope and the pages of each, and the part of the last page that equal prompts may copy.
    assert num_hashes <= (1 + 10 + 1) + (1 + 15 + 1)
