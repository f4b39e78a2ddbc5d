"""How a prompt is split into chunks: few padded tokens, weighed against the cost of one more dispatch.

Pure arithmetic. With buckets 16, 64 and 256, a prompt of 67 tokens is either one chunk padded to 256, or a
chunk of 64 and one of 3 padded to 16. Which is cheaper depends on the device.
"""

from __future__ import annotations

from collections.abc import Iterable


class ChunkPlan:
    """The cheapest way to cover any number of tokens with chunks of compiled lengths.

    Args:
        lengths: padded lengths that have a prefill program.
        dispatch_cost_tokens: fixed cost of one dispatch, in padded tokens. With None, every prompt that fits
            a bucket is one chunk.
    """

    def __init__(self, lengths: Iterable[int], dispatch_cost_tokens: int | None) -> None:
        lengths = sorted(set(lengths))
        self._longest = lengths[-1]
        overhead = self._longest if dispatch_cost_tokens is None else dispatch_cost_tokens
        # costs[n] is the cost of n tokens. The longest chunk comes first, so later chunks are shorter.
        costs = [0]
        self._first = [0]
        for num_tokens in range(1, self._longest + 1):
            cost, first = min(
                (overhead + length + costs[max(num_tokens - length, 0)], -min(length, num_tokens))
                for length in lengths
            )
            costs.append(cost)
            self._first.append(-first)

    def next_length(self, num_left: int) -> int:
        """Return the length of the next chunk of a prompt with `num_left` >= 1 tokens not yet prefilled."""
        return self._longest if num_left > self._longest else self._first[num_left]


def keep_whole(start: int, end: int, blocks: Iterable[tuple[int, int]]) -> int:
    """Move the end of a chunk so that it splits no block.

    Args:
        blocks: (first token, one past the last) of each block that must lie in one chunk, in order. No block
            may begin before `start` and end after it.

    Returns:
        `end`, or the start of the block that it would split. If the chunk starts with that block, the end of
        the block.
    """
    for first, behind in blocks:
        if first < end < behind:
            return first if first > start else behind
    return end
