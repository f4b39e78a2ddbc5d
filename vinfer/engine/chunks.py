"""How a prompt is cut into chunks: fewest padded tokens, weighed against the cost of one more dispatch.

Pure arithmetic. A prompt of 67 tokens with buckets 16, 64 and 256 is one chunk padded to 256, or 64 and 3
padded to 16: which is cheaper depends on the device.
"""

from __future__ import annotations

from collections.abc import Iterable


class ChunkPlan:
    """The cheapest way to cover any number of tokens with chunks of compiled lengths.

    Args:
        lengths: padded lengths that prefill programs exist for.
        dispatch_cost_tokens: what one dispatch costs besides its tokens, in padded tokens. None makes
            every prompt that fits a bucket one chunk.
    """

    def __init__(self, lengths: Iterable[int], dispatch_cost_tokens: int | None) -> None:
        lengths = sorted(set(lengths))
        self._longest = lengths[-1]
        overhead = self._longest if dispatch_cost_tokens is None else dispatch_cost_tokens
        # costs[n] covers n tokens; the longest chunk comes first, so that later chunks are the short ones.
        costs = [0]
        self._first = [0]
        for num_tokens in range(1, self._longest + 1):
            cost, first = min(
                (overhead + length + costs[max(num_tokens - length, 0)], -min(length, num_tokens))
                for length in lengths
            )
            costs.append(cost)
            self._first.append(-first)

    def last_start(self, num_tokens: int) -> int:
        """Return where the last chunk of a prompt of `num_tokens` >= 1 begins."""
        start = 0
        while (length := self.next_length(num_tokens - start)) < num_tokens - start:
            start += length
        return start

    def next_length(self, num_left: int) -> int:
        """Return the tokens of the next chunk of a prompt of which `num_left` >= 1 are not prefilled yet."""
        return self._longest if num_left > self._longest else self._first[num_left]
