"""Page pools and page tables, case by case. Contents are keyed by prompts of the tokens 0, 1, 2, ..."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from vinfer.engine.kv_cache.pages import NO_PAGE, PagePool, PageTable, ShardPages, total_owned
from vinfer.engine.kv_cache.prefix_keys import PrefixKeys

SIZE = 4
TOKENS = range(64)


def keys_of(tokens: Sequence[int] = TOKENS, scope: str = "s") -> PrefixKeys:
    return PrefixKeys(scope, tokens, (), SIZE)


def make_pages(
    num_pages: Sequence[int] = (6,), windows: Sequence[int | None] = (None,), pages_of_row: int = 16
) -> ShardPages:
    return ShardPages(0, num_pages, windows=windows, page_size=SIZE, pages_of_row=pages_of_row)


def filled(pages: ShardPages, num_positions: int, keys: PrefixKeys | None = None) -> PageTable:
    """Return the table of a request that has written some positions, with its full pages published."""
    table = pages.open(num_positions)
    assert pages.cover(table, start=0, end=num_positions)
    if keys is not None:
        pages.publish(table, keys, start=0, end=num_positions)
    pages.check_integrity()
    return table


# One pool.


def test_free_pages_come_before_idle_ones_and_the_least_recently_used_goes_first() -> None:
    pool = PagePool(3)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, b"first")
    pool.publish(second, b"second")
    pool.give_back(second)
    pool.give_back(first)
    assert pool.num_available == 3
    free = pool.allocate()
    assert free not in (first, second)
    assert pool.find(b"second") == second
    assert pool.allocate() == second
    assert pool.find(b"second") is None
    assert pool.find(b"first") == first
    pool.check_integrity([free, second])


def test_a_page_that_is_used_again_is_the_last_to_go() -> None:
    pool = PagePool(2)
    pages = [pool.allocate(), pool.allocate()]
    for page, key in zip(pages, (b"first", b"second"), strict=True):
        pool.publish(page, key)
        pool.give_back(page)
    pool.share(pages[0])
    assert not pool.is_idle(pages[0])
    pool.give_back(pages[0])
    assert [pool.allocate(), pool.allocate()] == [pages[1], pages[0]]


def test_a_page_is_there_until_its_last_owner_leaves() -> None:
    pool = PagePool(1)
    page = pool.allocate()
    pool.share(page)
    pool.give_back(page)
    assert pool.num_available == 0
    pool.give_back(page)
    assert pool.num_available == 1
    assert not pool.is_idle(page)


def test_equal_contents_are_found_in_the_first_page_that_had_them() -> None:
    pool = PagePool(2)
    first, second = pool.allocate(), pool.allocate()
    assert pool.publish(first, b"key") == first
    assert pool.publish(second, b"key") == first
    pool.check_integrity([first, second])
    # Nobody can find the second page, so it is free at once.
    pool.give_back(second)
    assert not pool.is_idle(second)


def test_a_page_can_have_several_keys_and_loses_all_of_them() -> None:
    pool = PagePool(1)
    page = pool.allocate()
    for key in (b"part", b"full"):
        pool.publish(page, key)
    assert pool.find(b"part") == pool.find(b"full") == page
    pool.give_back(page)
    pool.allocate()
    assert pool.find(b"part") is pool.find(b"full") is None


def test_a_copy_is_another_page_while_there_is_one() -> None:
    pool = PagePool(2)
    source = pool.allocate()
    pool.publish(source, b"key")
    pool.give_back(source)
    target = pool.allocate_copy(source)
    assert target != source
    assert pool.find(b"key") == source
    # The source is all that is left now: it becomes the copy, and its contents will change.
    assert pool.allocate_copy(source) == source
    assert pool.find(b"key") is None
    pool.check_integrity([source, target])


def test_a_page_with_an_owner_is_never_its_own_copy() -> None:
    pool = PagePool(2)
    source = pool.allocate()
    pool.publish(source, b"key")
    assert pool.allocate_copy(source) != source


# Tables.


def test_a_table_grows_page_by_page_and_gives_all_back() -> None:
    pages = make_pages()
    table = pages.open(0)
    for end, num_pages in ((1, 1), (4, 1), (5, 2), (12, 3)):
        assert pages.cover(table, start=0, end=end)
        assert (len(table.pages[0]), pages.num_owned) == (num_pages, num_pages)
    assert total_owned([pages, make_pages()]) == (3, 12)
    pages.close(table)
    assert pages.num_owned == 0
    pages.check_integrity()


def test_the_end_of_a_prompt_leaves_before_its_beginning() -> None:
    pages = make_pages()
    keys = keys_of()
    pages.close(filled(pages, 24, keys))
    other = pages.open(0)
    for num_found in (5, 4, 3):
        assert pages.cover(other, start=0, end=SIZE * (6 - num_found))
        assert pages.find(keys, first=0, last=6) == num_found
        assert pages.find(keys, first=0, last=2) == 2


def test_one_request_s_prompt_leaves_before_that_of_a_later_one() -> None:
    pages = make_pages()
    old, new = keys_of(scope="old"), keys_of(scope="new")
    tables = [filled(pages, 8, keys) for keys in (old, new)]
    for table in tables:
        pages.close(table)
    assert pages.cover(pages.open(0), start=0, end=4 * SIZE)
    assert [pages.find(keys, first=0, last=2) for keys in (old, new)] == [0, 2]


def test_what_is_promised_to_one_request_is_not_given_to_another() -> None:
    pages = make_pages((6,))
    long, other = pages.open(16), pages.open(0)
    assert pages.num_promisable() == 2
    assert pages.cover(other, start=0, end=8)
    assert not pages.cover(other, start=8, end=9)
    assert pages.cover(long, start=0, end=16)
    # Beyond its promise a request has no more right than others.
    assert not pages.cover(long, start=16, end=17)
    pages.close(other)
    assert pages.cover(long, start=16, end=17)
    pages.check_integrity()


def test_a_promise_ends_with_its_request() -> None:
    pages = make_pages((6,))
    table = pages.open(24)
    assert pages.num_promisable() == 0
    pages.close(table)
    assert pages.num_promisable() == 6


def test_a_table_that_cannot_be_covered_is_left_as_it_is() -> None:
    pages = make_pages((6, 6), (None, 5))
    keys = keys_of()
    pages.close(filled(pages, 8, keys))
    filled(pages, 16)
    table = filled(pages, 4)
    before = table.snapshot()
    assert not pages.cover(table, start=4, end=SIZE * 4)
    assert table.snapshot() == before
    # Not even what is idle was taken for the part that would have fit.
    assert pages.find(keys, first=0, last=1) == 1
    pages.check_integrity()


def test_a_window_gives_back_what_it_has_passed() -> None:
    """A token at position 12 sees 8 to 12 through a window of 5."""
    pages = make_pages((8, 8), (None, 5))
    table = filled(pages, 12)
    for start, num_passed in ((7, 0), (8, 1), (11, 1), (12, 2)):
        assert pages.cover(table, start=start, end=start + 1)
        assert table.pages[1][:num_passed] == [NO_PAGE] * num_passed
        assert NO_PAGE not in table.pages[1][num_passed:]
    assert NO_PAGE not in table.pages[0]
    pages.check_integrity()


@pytest.mark.parametrize(
    ("num_positions", "num_full", "num_windowed"), [(0, 0, 0), (1, 1, 1), (4, 1, 1), (5, 2, 2), (40, 10, 3)]
)
def test_a_request_needs_no_more_pages_than_a_row_holds(
    num_positions: int, num_full: int, num_windowed: int
) -> None:
    assert make_pages().pages_for(num_positions) == num_full
    assert make_pages(windows=(5,), pages_of_row=3).pages_for(num_positions) == num_windowed


# Found pages.


def test_what_is_found_is_shared() -> None:
    pages = make_pages()
    keys = keys_of()
    table = filled(pages, 10, keys)
    assert pages.find(keys, first=0, last=6) == 2
    assert pages.num_needed(keys, num_found=2, num_positions=12) == 1
    other = pages.open(12)
    pages.share(other, keys, num_pages=2)
    assert other.pages[0] == table.pages[0][:2]
    assert pages.num_owned == 3
    assert pages.cover(other, start=8, end=12)
    pages.check_integrity()
    pages.close(table)
    assert pages.num_owned == 3


def test_idle_pages_that_are_shared_count_as_needed() -> None:
    pages = make_pages()
    keys = keys_of()
    pages.close(filled(pages, 8, keys))
    assert pages.num_needed(keys, num_found=2, num_positions=12) == 3
    assert pages.num_needed(None, num_found=0, num_positions=12) == 3


def test_a_prompt_finds_no_page_beyond_a_difference() -> None:
    pages = make_pages()
    filled(pages, 12, keys_of())
    other = keys_of([*range(6), 99, *range(7, 64)])
    assert pages.find(other, first=0, last=3) == 1


@pytest.mark.parametrize(("last", "num_found"), [(1, 0), (2, 0), (3, 0), (4, 4), (5, 5), (6, 5)])
def test_a_window_finds_its_last_pages_only(last: int, num_found: int) -> None:
    """Of five pages the window of 5 has passed three, and another request has those of this group now.

    At position 16 a token sees 12 to 16, so four pages can be shared, but not three.
    """
    pages = make_pages((12, 8), (None, 5))
    keys = keys_of()
    table = pages.open(20)
    for start in (0, 4, 8, 12, 16):
        assert pages.cover(table, start=start, end=start + 4)
        pages.publish(table, keys, start=start, end=start + 4)
    pages.close(filled(pages, 24))
    assert pages.find(keys, first=0, last=last) == num_found


def test_a_table_that_begins_with_found_pages_has_none_where_its_window_has_passed() -> None:
    pages = make_pages((8, 8), (None, 5))
    keys = keys_of()
    filled(pages, 16, keys)
    other = pages.open(20)
    pages.share(other, keys, num_pages=4)
    assert NO_PAGE not in other.pages[0]
    # At position 16 it sees 12 to 16.
    assert [page == NO_PAGE for page in other.pages[1]] == [True, True, True, False]
    pages.check_integrity()


def test_more_found_pages_come_behind_a_request_s_own() -> None:
    pages = make_pages()
    keys = keys_of()
    table = filled(pages, 4, keys)
    other = filled(pages, 8)
    pages.publish(other, keys, start=4, end=8)
    assert pages.find(keys, first=1, last=2) == 2
    own = table.pages[0][0]
    pages.share(table, keys, num_pages=2)
    assert table.pages[0] == [own, other.pages[0][1]]
    pages.check_integrity()


def test_a_page_with_known_contents_is_replaced_by_the_one_that_has_them_already() -> None:
    """Two requests that computed the same at the same time end up with one page."""
    pages = make_pages()
    keys = keys_of()
    table, other = filled(pages, 10), filled(pages, 10)
    assert pages.num_owned == 6
    for each in (table, other):
        pages.publish(each, keys, start=0, end=10)
    assert other.pages[0][:2] == table.pages[0][:2]
    assert pages.num_owned == 4
    pages.check_integrity()


def test_a_group_with_a_window_has_room_wherever_the_first_group_has() -> None:
    """A page was found in one group, and not its like in the other: there, both stayed in memory."""
    pages = make_pages((3, 3), (None, 5))
    keys = keys_of()
    pages.close(filled(pages, 4, keys))
    # The full group has no other page left than the idle one; the window frees one in time.
    other = pages.open(0)
    assert pages.cover(other, start=0, end=8)
    assert pages.cover(other, start=8, end=12)
    pages.close(other)
    assert pages.find(keys, first=0, last=1) == 0
    table = filled(pages, 4, keys)
    sharing = pages.open(8)
    pages.share(sharing, keys, num_pages=1)
    assert pages.num_owned == 1
    for each in (table, sharing):
        assert pages.cover(each, start=4, end=8)
    pages.check_integrity()


def test_full_pages_are_published_once_their_last_position_is_written() -> None:
    pages = make_pages()
    keys = keys_of()
    table = filled(pages, 12)
    for start, end, num_found in ((0, 3, 0), (3, 5, 1), (5, 7, 1), (7, 12, 3)):
        pages.publish(table, keys, start=start, end=end)
        assert pages.find(keys, first=0, last=3) == num_found


# Parts of pages.


def test_the_part_of_a_page_is_copied() -> None:
    pages = make_pages((6, 6), (None, 5))
    keys = keys_of()
    table = filled(pages, 7, keys)
    assert not pages.has(keys.of_part(6))
    pages.publish_part(table, keys.of_part(6), end=6)
    assert pages.has(keys.of_part(6))
    other = pages.open(7)
    pages.share(other, keys, num_pages=1)
    copy = pages.copy_part(other, keys.of_part(6), start=4, end=6)
    assert copy is not None
    assert copy.sources == tuple(of_group[1] for of_group in table.pages)
    assert copy.targets == tuple(of_group[1] for of_group in other.pages)
    assert not set(copy.sources) & set(copy.targets)
    pages.check_integrity()


def test_no_part_is_copied_without_memory_or_without_such_a_page() -> None:
    pages = make_pages((2,))
    keys = keys_of()
    table = filled(pages, 3)
    pages.publish_part(table, keys.of_part(2), end=2)
    other, full = pages.open(0), filled(pages, 4)
    assert pages.copy_part(other, keys.of_part(3), start=0, end=3) is None
    assert pages.copy_part(other, keys.of_part(2), start=0, end=2) is None
    assert other.pages == [[]]
    pages.close(full)
    assert pages.copy_part(other, keys.of_part(2), start=0, end=2) is not None
    pages.check_integrity()


@pytest.mark.parametrize("windows", [(None,), (5,)])
def test_an_idle_page_becomes_the_copy_if_nothing_else_is_left(windows: tuple[int | None, ...]) -> None:
    pages = make_pages((1,), windows)
    keys = keys_of()
    table = filled(pages, 3)
    pages.publish_part(table, keys.of_part(2), end=2)
    pages.close(table)
    copy = pages.copy_part(pages.open(3), keys.of_part(2), start=0, end=2)
    assert copy is not None
    assert copy.sources == copy.targets
    assert not pages.has(keys.of_part(2))
    pages.check_integrity()


# A first group with a window.


def test_shared_pages_do_not_count_towards_what_a_window_is_promised() -> None:
    """When the window leaves them, the request needs pages of its own."""
    pages = make_pages((6,), (5,), pages_of_row=4)
    keys = keys_of()
    table = filled(pages, 8, keys)
    assert pages.num_promisable() == 4
    other = pages.open(16)
    assert pages.num_promisable() == 0
    pages.share(other, keys, num_pages=2)
    assert pages.num_promisable() == 0
    for start in (8, 12):
        assert pages.cover(other, start=start, end=start + 4)
        pages.check_integrity()
    pages.close(table)
    pages.close(other)
    assert pages.num_promisable() == 6
