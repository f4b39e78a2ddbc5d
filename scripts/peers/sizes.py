"""How much each part of `scripts/bench --peers` sends, in a full run and in a quick one."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of streams, lengths in tokens, and requests.

    Attributes:
        cold_starts: timed ones per server, where it has no lower number of its own.
        fixed: streams with prompts of 67 tokens.
        drawn: streams with prompts of 8 to 700 tokens.
        slow: streams of the two above that slow servers have too.
        requests: least number of requests of a load, over all streams.
        lone: requests with a lone short prompt, in one turn; `lone_long` with a long one.
        ceiling_requests: per stream.
    """

    repeats: int
    cold_starts: int
    fixed: tuple[int, ...]
    drawn: tuple[int, ...]
    slow: tuple[int, ...]
    requests: int
    lone: int
    lone_long: int
    memory_tokens: int
    growth_repeats: int
    growth_streams: tuple[int, ...]
    growth_prompts: tuple[int, ...]
    growth_outputs: tuple[int, ...]
    ceiling: tuple[int, ...]
    ceiling_requests: int

    def rounds_of(self, streams: int) -> int:
        """Return the requests of each stream: at least two, so that streams do not only begin together."""
        return max(2, -(-self.requests // streams))

    def turns_of(self, part: str) -> int:
        """Return how often a part measures each server."""
        return {"start": self.cold_starts, "memory": 1, "growth": self.growth_repeats}.get(part, self.repeats)


FULL = Sizes(
    repeats=3,
    cold_starts=3,
    fixed=(1, 4, 8, 16, 32),
    drawn=(1, 4, 8, 16),
    slow=(1, 4, 16),
    requests=8,
    lone=10,
    lone_long=3,
    memory_tokens=64,
    growth_repeats=2,
    growth_streams=(1, 2, 4, 8, 16, 32, 64),
    growth_prompts=(16, 64, 256, 1024, 4096),
    growth_outputs=(16, 64, 256, 1024),
    ceiling=(1, 16, 64),
    ceiling_requests=10,
)
QUICK = Sizes(
    repeats=1,
    cold_starts=1,
    fixed=(1, 8),
    drawn=(4,),
    slow=(1,),
    requests=4,
    lone=3,
    lone_long=1,
    memory_tokens=16,
    growth_repeats=1,
    growth_streams=(1, 16),
    growth_prompts=(16, 1024),
    growth_outputs=(16, 64),
    ceiling=(1, 64),
    ceiling_requests=4,
)
