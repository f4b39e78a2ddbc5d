"""How many pages the KV cache has: what one request can use, what fits into memory, and what that costs.

Pure arithmetic over the manifest's figures, for plans and for loading. A group is the layers with the same
window; each group has its own pages. All numbers are those of one dp shard, and bytes those of one device.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

MAX_POOL_BYTES = 4 << 30
"""Most bytes of a k or v array on a GPU: the kernel that decodes there counts in 32 bits."""


def addressable_pages(platform: str, page_bytes: int) -> int | None:
    """Return the most pages of a k or v array with so many bytes per page; None if there is no limit."""
    return MAX_POOL_BYTES // page_bytes if platform == "cuda" else None


@dataclasses.dataclass(frozen=True, slots=True)
class PageGroup:
    """The pages of one group of layers.

    Attributes:
        window: positions that a token sees in these layers; None for all.
        page_bytes: bytes of one page in all layers of the group, k and v together, on one device.
        max_pages: most pages that programs can address; None if there is no limit.
    """

    window: int | None
    page_bytes: int
    max_pages: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class PagePlan:
    """The figures that decide how many pages there are.

    Attributes:
        page_size: positions of one page.
        max_model_len: positions of the longest request.
        num_slots: slots of one dp shard.
        max_write_len: most positions that one dispatch writes for a request.
        groups: full attention first, if there is any.
    """

    page_size: int
    max_model_len: int
    num_slots: int
    max_write_len: int
    groups: tuple[PageGroup, ...]

    def pages_of_row(self, group: PageGroup) -> int:
        """Return the most pages of a group that one request can hold."""
        longest = -(-self.max_model_len // self.page_size)
        if group.window is None:
            return longest
        # A window and what is being written may begin and end within a page.
        return min(-(-(group.window + self.max_write_len) // self.page_size) + 1, longest)

    def most_pages(self) -> tuple[int, ...]:
        """Return the pages of each group that no number of requests, and no program, can exceed."""
        return tuple(
            min(self.num_slots * self.pages_of_row(group), group.max_pages or sys.maxsize)
            for group in self.groups
        )

    def least_pages(self) -> tuple[int, ...]:
        """Return the pages of each group that a single request of full length needs."""
        return tuple(self.pages_of_row(group) for group in self.groups)

    def with_pages(self, num_pages: int) -> tuple[int, ...]:
        """Return the pages of each group for a number of pages in the first.

        A windowed group never has fewer pages than requests that fit the first group can need, so only the
        first group can run out.
        """
        return tuple(
            num_pages if place == 0 else min(num_pages, self.num_slots * self.pages_of_row(group))
            for place, group in enumerate(self.groups)
        )

    def within(self, num_bytes: int) -> tuple[int, ...]:
        """Return the most pages of each group that fit into `num_bytes`; zeros if not even one fits."""
        low, high = 0, num_bytes // self.groups[0].page_bytes
        while low < high:
            middle = (low + high + 1) // 2
            if self.num_bytes(self.with_pages(middle)) <= num_bytes:
                low = middle
            else:
                high = middle - 1
        return self.with_pages(low)

    def num_bytes(self, num_pages: Sequence[int]) -> int:
        """Return the bytes of some pages of each group."""
        return sum(group.page_bytes * pages for group, pages in zip(self.groups, num_pages, strict=True))

    def max_len(self, num_pages: Sequence[int]) -> int:
        """Return the longest request, prompt and answer, that a number of pages in each group can hold."""
        if num_pages[0] >= self.pages_of_row(self.groups[0]):
            return self.max_model_len
        return min(self.max_model_len, num_pages[0] * self.page_size)
