"""Which pages of others a prompt begins with, within the limits of programs and images.

Pure Python beside the scheduler, engine thread. `ShardPages` knows what is there; this knows what may be
used.
"""

from __future__ import annotations

from vinfer.engine.kv_cache.pages import ShardPages
from vinfer.engine.kv_cache.prefix_keys import PrefixKeys
from vinfer.engine.request import Request
from vinfer.engine.running import Running, prompt_kind


class Prefixes:
    """The beginnings that prompts may share.

    Args:
        page_size: positions of a page.
        chunk_len: with single shapes, the length of a whole chunk; a prompt begins with whole chunks only.
            None: a prompt may begin at the end of any page.
        keeps_images_whole: every image lies in one chunk.
        can_find: whether pages are all that a token needs of what came before.

    Attributes:
        num_queries: prompt tokens of requests that could have found pages.
        num_hits: how many of them were found.
    """

    def __init__(
        self, *, page_size: int, chunk_len: int | None, keeps_images_whole: bool, can_find: bool
    ) -> None:
        self._page_size = page_size
        self._chunk_len = chunk_len
        self._keeps_images_whole = keeps_images_whole
        self._can_find = can_find
        self.num_queries = 0
        self.num_hits = 0

    def keys(self, request: Request, tokens: list[int]) -> PrefixKeys | None:
        if request.cache_scope is None or not self._can_find:
            return None
        return PrefixKeys(request.cache_scope, tokens, request.images, self._page_size)

    def find(
        self, shard: ShardPages, keys: PrefixKeys, request: Request, num_tokens: int, first: int = 0
    ) -> int:
        """Return how many pages a prompt may begin with: not all of it, and no part of a whole block."""
        if prompt_kind(request) != "prefill":
            return 0
        # The last token is always computed, for its logits.
        num_found = shard.find(keys, first=first, last=(num_tokens - 1) // shard.page_size)
        while num_found > first and not self._is_edge(request, num_found * shard.page_size):
            num_found -= 1
        # What a window needs was there for the longer part, and need not be for the shorter one.
        return num_found if shard.find(keys, first=first, last=num_found) == num_found else first

    def find_more(self, running: Running) -> None:
        """Let a prompt skip the pages of others that have been written since it began."""
        assert running.keys is not None
        place = running.num_prefilled // running.shard.page_size
        num_found = self.find(
            running.shard, running.keys, running.request, running.num_to_prefill, first=place
        )
        if num_found > place:
            self.begin_with(running, num_found)

    def begin_with(self, running: Running, num_pages: int) -> None:
        """Let a request have pages of others, and skip their positions."""
        assert running.keys is not None
        running.shard.share(running.table, running.keys, num_pages=num_pages)
        self.skip_to(running, num_pages * running.shard.page_size)

    def skip_to(self, running: Running, position: int) -> None:
        skipped = position - running.num_prefilled
        running.num_prefilled = position
        running.num_published = max(running.num_published, position)
        if not running.outputs:
            running.num_cached += skipped
            self.num_hits += skipped

    def shares_parts(self, running: Running) -> bool:
        """Return whether equal prompts may copy the page before the last token of this one."""
        end = running.num_to_prefill - 1
        return (
            running.finds_pages and end % running.shard.page_size != 0 and self._is_edge(running.request, end)
        )

    def _is_edge(self, request: Request, position: int) -> bool:
        """Return whether a prompt that begins at a position is split as if it had begun at 0."""
        if self._chunk_len is not None and position % self._chunk_len:
            return False
        return not any(start < position < behind for start, behind in self.whole_blocks(request))

    def whole_blocks(self, request: Request) -> list[tuple[int, int]]:
        """Return the (first token, one past the last) of each block that no chunk may split."""
        if not self._keeps_images_whole:
            return []
        return [(image.start, image.start + image.num_tokens) for image in request.images]
