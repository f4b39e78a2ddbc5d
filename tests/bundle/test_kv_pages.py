"""How many pages there are, by hand: for one request, for all slots, and for some memory."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinfer.bundle.kv_pages import MAX_POOL_BYTES, PageGroup, PagePlan, addressable_pages

FULL = PageGroup(window=None, page_bytes=100)
WINDOWED = PageGroup(window=64, page_bytes=10)


def make_plan(**figures: Any) -> PagePlan:
    defaults = {
        "page_size": 32,
        "max_model_len": 1000,
        "num_slots": 4,
        "max_write_len": 80,
        "groups": (FULL, WINDOWED),
    }
    return PagePlan(**{**defaults, **figures})


def test_programs_for_gpus_address_pools_of_four_gib() -> None:
    assert MAX_POOL_BYTES == 4 << 30
    assert addressable_pages("cuda", page_bytes=128 * 1024 * 2) == 16384
    assert [addressable_pages(platform, page_bytes=1) for platform in ("cpu", "tpu")] == [None, None]


def test_no_request_gets_a_page_that_programs_cannot_address() -> None:
    plan = make_plan(groups=(PageGroup(None, 100, max_pages=50), PageGroup(64, 10, max_pages=50)))
    assert plan.most_pages() == (50, 4 * 6)
    assert make_plan(groups=(PageGroup(None, 100, max_pages=500),)).most_pages() == (4 * 32,)


@pytest.mark.parametrize(
    ("max_model_len", "expected"), [(1, 1), (32, 1), (33, 2), (1000, 32), (1024, 32), (1025, 33)]
)
def test_a_row_of_full_attention_holds_every_position(max_model_len: int, expected: int) -> None:
    assert make_plan(max_model_len=max_model_len).pages_of_row(FULL) == expected


@pytest.mark.parametrize(
    ("window", "max_write_len", "expected"),
    [
        (64, 80, 6),  # 144 positions are 4.5 pages, which begin and end within one
        (64, 64, 5),
        (1, 1, 2),
        (1, 31, 2),
        (1, 32, 3),
        (64, 900, 32),  # never more than the longest request has
        (5000, 1, 32),
    ],
)
def test_a_row_of_a_window_holds_what_it_sees_and_writes(
    window: int, max_write_len: int, expected: int
) -> None:
    plan = make_plan(max_write_len=max_write_len)
    assert plan.pages_of_row(PageGroup(window, page_bytes=1)) == expected


@given(
    window=st.integers(1, 200),
    page_size=st.integers(1, 40),
    max_write_len=st.integers(1, 100),
    start=st.integers(0, 900),
    data=st.data(),
)
def test_no_dispatch_needs_more_pages_of_a_window(
    window: int, page_size: int, max_write_len: int, start: int, data: st.DataObject
) -> None:
    end = start + data.draw(st.integers(1, max_write_len))
    plan = make_plan(page_size=page_size, max_write_len=max_write_len)
    first_seen = max(start - window + 1, 0)
    pages = {position // page_size for position in range(first_seen, min(end, plan.max_model_len))}
    assert len(pages) <= plan.pages_of_row(PageGroup(window, page_bytes=1))


def test_the_least_is_one_request_and_the_most_is_every_slot() -> None:
    plan = make_plan()
    assert plan.least_pages() == (32, 6)
    assert plan.most_pages() == (128, 24)


@pytest.mark.parametrize(
    ("num_pages", "expected"), [(1, (1, 1)), (24, (24, 24)), (25, (25, 24)), (128, (128, 24))]
)
def test_other_groups_have_as_many_pages_as_the_first_or_as_all_slots_need(
    num_pages: int, expected: tuple[int, int]
) -> None:
    assert make_plan().with_pages(num_pages) == expected


def test_bytes_of_some_pages() -> None:
    assert make_plan().num_bytes((32, 6)) == 32 * 100 + 6 * 10
    with pytest.raises(ValueError, match="zip"):
        make_plan().num_bytes((32,))


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, (0, 0)),
        (109, (0, 0)),
        (110, (1, 1)),
        (24 * 110, (24, 24)),
        (24 * 110 + 99, (24, 24)),
        (24 * 110 + 100, (25, 24)),
        (10_000_000, (99997, 24)),
    ],
)
def test_memory_holds_the_most_pages_that_fit(num_bytes: int, expected: tuple[int, int]) -> None:
    plan = make_plan()
    assert plan.within(num_bytes) == expected
    assert plan.num_bytes(expected) <= num_bytes


@given(num_bytes=st.integers(0, 200_000), page_bytes=st.integers(1, 300))
def test_one_more_page_never_fits(num_bytes: int, page_bytes: int) -> None:
    plan = make_plan(groups=(FULL, PageGroup(64, page_bytes)))
    pages = plan.within(num_bytes)
    assert plan.num_bytes(pages) <= num_bytes < plan.num_bytes(plan.with_pages(pages[0] + 1))


@pytest.mark.parametrize(
    ("num_pages", "expected"), [((1, 1), 32), ((31, 6), 992), ((32, 6), 1000), ((500, 24), 1000)]
)
def test_the_longest_request_is_that_of_the_model_or_what_the_first_group_holds(
    num_pages: tuple[int, ...], expected: int
) -> None:
    assert make_plan().max_len(num_pages) == expected


def test_a_plan_of_windows_alone_has_their_pages_in_its_first_group() -> None:
    plan = make_plan(groups=(WINDOWED,))
    assert plan.least_pages() == (6,)
    assert plan.most_pages() == (24,)
    assert plan.with_pages(7) == (7,)
