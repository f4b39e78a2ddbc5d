"""How throughput, TTFT and ITL grow with streams, with prompts and with answers; one axis at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peers import loads
from peers.sizes import Sizes
from peers.turns import Side, in_turns

AXES = {
    "streams": "prompts of 67 tokens, answers of 64; above 32, streams wait for a slot",
    "prompt": "1 stream, answers of 32 tokens",
    "output": "4 streams, prompts of 67 tokens",
}


async def growth(sides: Sequence[Side], sizes: Sizes) -> dict[str, Any]:
    """Return the figures by axis, by value on the axis, and by side."""
    lengths = {
        "streams": [(n, loads.throughput(loads.FIXED_TOKENS, n, 2)) for n in sizes.growth_streams],
        "prompt": [(n, loads.throughput(n, 1, 2, 32)) for n in sizes.growth_prompts],
        "output": [(n, loads.throughput(loads.FIXED_TOKENS, 4, 1, n)) for n in sizes.growth_outputs],
    }
    return {
        axis: {
            f"{value}": await in_turns(f"growth, {axis} {value}", sides, sizes.growth_repeats, measure)
            for value, measure in points
        }
        for axis, points in lengths.items()
    }
