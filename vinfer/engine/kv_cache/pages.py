"""Who has which pages of the KV cache: tables, counts, the free list, and the pages that can be found again.

Pure Python beside the scheduler, engine thread; never sees arrays. A page with no owner whose contents have
a key stays idle until its memory is needed; the least recently used leaves first. The device works in order,
so a page may be given to a new owner while an older dispatch still writes to it.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from vinfer.engine.kv_cache.prefix_keys import PrefixKeys

NO_PAGE = 2**31 - 1
"""An entry of a table without a page, as in `vinfer.compiler.paged_attention`."""


class PagePool:
    """The pages of one group of layers in one dp shard."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._num_owners = [0] * num_pages
        self._keys: dict[int, set[bytes]] = {}
        self._page_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Pages without an owner."""
        return len(self._free) + len(self._idle)

    def find(self, key: bytes) -> int | None:
        """Return a page with these contents."""
        return self._page_of.get(key)

    def is_idle(self, page: int) -> bool:
        return page in self._idle

    def share(self, page: int) -> None:
        """Add an owner to a page that was found."""
        self._idle.pop(page, None)
        self._num_owners[page] += 1

    def allocate(self) -> int:
        """Return a page for one owner, with contents that nobody reads."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        self._num_owners[page] = 1
        return page

    def allocate_copy(self, source: int) -> int:
        """Return a page for a copy of a page: without other memory, the page itself, if nobody owns it."""
        if self.num_available == 1:
            return self.allocate()
        # Held meanwhile, or the page could be taken as its own copy.
        self.share(source)
        page = self.allocate()
        self.give_back(source)
        return page

    def give_back(self, page: int) -> None:
        """Remove an owner."""
        self._num_owners[page] -= 1
        if self._num_owners[page]:
            return
        if page in self._keys:
            self._idle[page] = None
        else:
            self._free.append(page)

    def publish(self, page: int, key: bytes) -> int:
        """Let a page be found by its contents, unless another has the same; return the one to be found."""
        if key not in self._page_of:
            self._page_of[key] = page
            self._keys.setdefault(page, set()).add(key)
        return self._page_of[key]

    def _forget(self, page: int) -> None:
        for key in self._keys.pop(page, ()):
            del self._page_of[key]

    def check_integrity(self, owned: Sequence[int]) -> None:
        """Raise AssertionError if a page is lost, owned by nobody, or counted wrongly.

        Args:
            owned: the pages of all tables, once for every owner.
        """
        counts = [0] * self.num_pages
        for page in owned:
            counts[page] += 1
        assert counts == self._num_owners, (counts, self._num_owners)
        without_owner = {page for page, count in enumerate(counts) if not count}
        assert sorted(self._free + list(self._idle)) == sorted(without_owner)
        assert all(page in self._keys for page in self._idle)
        assert not any(page in self._keys for page in self._free)
        assert {key: page for page, keys in self._keys.items() for key in keys} == self._page_of


@dataclasses.dataclass(eq=False, slots=True)
class PageTable:
    """The pages of one running request: for each group, one entry per stretch of `page_size` positions.

    Attributes:
        pages: by group; NO_PAGE where a window has passed.
        num_promised: pages of the first group that nobody else may take before this request has them.
    """

    pages: list[list[int]]
    num_promised: int = 0

    @property
    def num_held(self) -> int:
        """Pages of the first group."""
        return sum(page != NO_PAGE for page in self.pages[0])

    @property
    def num_outstanding(self) -> int:
        return max(self.num_promised - self.num_held, 0)

    def snapshot(self) -> tuple[tuple[int, ...], ...]:
        return tuple(map(tuple, self.pages))


@dataclasses.dataclass(frozen=True, slots=True)
class PageCopy:
    """Copy a page of every group in one dp shard, before the work that needs it.

    Where the source is the target, the page is used in place.
    """

    shard: int
    sources: tuple[int, ...]
    targets: tuple[int, ...]


class ShardPages:
    """The pages of one dp shard.

    Args:
        shard: its index.
        num_pages: by group.
        windows: by group, the positions that a token sees; None for all.
        page_size: positions of a page.
        pages_of_row: most pages of the first group that one request holds.
    """

    def __init__(
        self,
        shard: int,
        num_pages: Sequence[int],
        *,
        windows: Sequence[int | None],
        page_size: int,
        pages_of_row: int,
    ) -> None:
        self.shard = shard
        self.page_size = page_size
        self._windows = tuple(windows)
        self._pools = tuple(map(PagePool, num_pages))
        self._pages_of_row = pages_of_row
        self._tables: set[PageTable] = set()

    @property
    def num_pages(self) -> int:
        """Pages of the first group."""
        return self._pools[0].num_pages

    @property
    def has_windows(self) -> bool:
        """Whether pages go back while a request still runs."""
        return any(window is not None for window in self._windows)

    @property
    def num_owned(self) -> int:
        """Pages of the first group that requests hold."""
        return self._pools[0].num_pages - self._pools[0].num_available

    def num_promisable(self) -> int:
        """Pages of the first group that are neither held nor promised."""
        if self._windows[0] is not None:
            # What requests share may leave the window of one, which then needs a page that nobody else has.
            promised = (max(table.num_promised, table.num_held) for table in self._tables)
            return self._pools[0].num_pages - sum(promised)
        return self._pools[0].num_available - sum(table.num_outstanding for table in self._tables)

    def pages_for(self, num_positions: int) -> int:
        """Return the most pages of the first group that a request of some length holds at once."""
        return min(-(-num_positions // self.page_size), self._pages_of_row)

    def find(self, keys: PrefixKeys, *, first: int, last: int) -> int:
        """Return how many pages of a prompt are there, such that the next token finds all that it sees.

        Args:
            first: pages that the request has already.
            last: most pages that the answer may name.

        Returns:
            A number from `first` to `last`.
        """
        reach = last
        for window, pool in zip(self._windows, self._pools, strict=True):
            if window is None:
                place = first
                while place < reach and pool.find(keys.of_page(place)) is not None:
                    place += 1
                reach = place
        while reach > first and not self._sees_window(keys, first, reach):
            reach -= 1
        return reach

    def _sees_window(self, keys: PrefixKeys, first: int, reach: int) -> bool:
        for window, pool in zip(self._windows, self._pools, strict=True):
            if window is not None:
                needed = range(max(self._first_visible(reach * self.page_size, window), first), reach)
                if any(pool.find(keys.of_page(place)) is None for place in needed):
                    return False
        return True

    def has(self, key: bytes) -> bool:
        """Whether every group has a page with these contents."""
        return all(pool.find(key) is not None for pool in self._pools)

    def num_needed(self, keys: PrefixKeys | None, *, num_found: int, num_positions: int) -> int:
        """Return how many promisable pages a request takes.

        Args:
            num_found: pages of others that it begins with.
            num_positions: those for which pages are promised.
        """
        num_new = self.pages_for(num_positions)
        if self._windows[0] is not None or keys is None:
            return num_new
        pool = self._pools[0]
        found = (pool.find(keys.of_page(place)) for place in range(num_found))
        return num_new - num_found + sum(page is not None and pool.is_idle(page) for page in found)

    def open(self, num_positions: int) -> PageTable:
        """Return an empty table, with a promise of pages for some positions."""
        table = PageTable([[] for _ in self._pools], self.pages_for(num_positions))
        self._tables.add(table)
        return table

    def close(self, table: PageTable) -> None:
        """Give all pages back; those at the end of a prompt are the first to be used again."""
        for pages, pool in zip(table.pages, self._pools, strict=True):
            for page in reversed(pages):
                if page != NO_PAGE:
                    pool.give_back(page)
            pages.clear()
        self._tables.discard(table)

    def share(self, table: PageTable, keys: PrefixKeys, *, num_pages: int) -> None:
        """Let a table begin with `num_pages` found pages, in place of its own from where they differ."""
        for window, pages, pool in zip(self._windows, table.pages, self._pools, strict=True):
            first_visible = 0 if window is None else self._first_visible(num_pages * self.page_size, window)
            for place in range(num_pages):
                own = pages[place] if place < len(pages) else NO_PAGE
                found = NO_PAGE
                if place >= first_visible:
                    page = pool.find(keys.of_page(place))
                    found = own if page is None else page
                if found != own:
                    if found != NO_PAGE:
                        pool.share(found)
                    if own != NO_PAGE:
                        pool.give_back(own)
                pages[place : place + 1] = [found]

    def cover(self, table: PageTable, *, start: int, end: int) -> bool:
        """Give a table pages for writing positions from `start` to `end`; give back what windows have passed.

        Returns:
            False if there are too few pages; nothing has changed then but for passed windows.
        """
        self._leave_passed(table, start)
        last = -(-end // self.page_size)
        if not self._has_room(table, last):
            return False
        for pages, pool in zip(table.pages, self._pools, strict=True):
            while len(pages) < last:
                pages.append(pool.allocate())
        return True

    def _leave_passed(self, table: PageTable, start: int) -> None:
        """Give back the pages that no token from `start` on sees."""
        for window, pages, pool in zip(self._windows, table.pages, self._pools, strict=True):
            if window is None:
                continue
            for place in range(min(self._first_visible(start, window), len(pages))):
                if pages[place] != NO_PAGE:
                    pool.give_back(pages[place])
                    pages[place] = NO_PAGE

    def _has_room(self, table: PageTable, last: int) -> bool:
        """Return whether a table can have `last` entries."""
        for group, (pages, pool) in enumerate(zip(table.pages, self._pools, strict=True)):
            num_new = last - len(pages)
            if num_new <= 0:
                # Most steps stay within the newest page, and what follows looks at all tables.
                continue
            available = pool.num_available
            if group == 0:
                available = self.num_promisable() + table.num_outstanding
            if num_new > available:
                return False
        return True

    def publish(self, table: PageTable, keys: PrefixKeys, *, start: int, end: int) -> None:
        """Let the pages that are full at `end`, and were not at `start`, be found by their contents.

        A page whose contents are in another one is replaced by that. So no two pages with owners have equal
        known contents, and groups with windows never hold more pages than the full one.
        """
        for pages, pool in zip(table.pages, self._pools, strict=True):
            for place in range(start // self.page_size, end // self.page_size):
                if pages[place] != NO_PAGE:
                    found = pool.publish(pages[place], keys.of_page(place))
                    if found != pages[place]:
                        pool.share(found)
                        pool.give_back(pages[place])
                        pages[place] = found

    def publish_part(self, table: PageTable, key: bytes, *, end: int) -> None:
        """Let the page that is written up to `end` be found by that part of its contents."""
        for pages, pool in zip(table.pages, self._pools, strict=True):
            pool.publish(pages[end // self.page_size], key)

    def copy_part(self, table: PageTable, key: bytes, *, start: int, end: int) -> PageCopy | None:
        """Return a copy of a page found by a part of its contents; None if there is none, or no memory.

        Args:
            start: end of the pages before it, which the table has.
            end: end of the part.
        """
        found = [page for pool in self._pools if (page := pool.find(key)) is not None]
        if len(found) < len(self._pools):
            return None
        self._leave_passed(table, start)
        if not self._has_room(table, end // self.page_size + 1):
            return None
        for page, pages, pool in zip(found, table.pages, self._pools, strict=True):
            pages.append(pool.allocate_copy(page))
        return PageCopy(self.shard, tuple(found), tuple(pages[-1] for pages in table.pages))

    def _first_visible(self, position: int, window: int) -> int:
        """Return the place of the first page that a token at a position sees through a window."""
        return max(position - window + 1, 0) // self.page_size

    def check_integrity(self) -> None:
        """Raise AssertionError if pages were lost, shared by mistake or counted wrongly."""
        for group, pool in enumerate(self._pools):
            pool.check_integrity(
                [page for table in self._tables for page in table.pages[group] if page != NO_PAGE]
            )
        assert self.num_promisable() >= 0


def total_owned(shards: Iterable[ShardPages]) -> tuple[int, int]:
    """Return the pages that requests hold, and all pages, of the first group in all shards."""
    shards = list(shards)
    return sum(shard.num_owned for shard in shards), sum(shard.num_pages for shard in shards)
