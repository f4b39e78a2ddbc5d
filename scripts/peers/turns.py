"""Measures servers in turns, and makes medians and ratios of what they did in the same turn.

Knows no load: a measurement is any coroutine of a side.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from benchmark.process import Served

from peers.servers import Server
from vinfer.bench.client import Endpoint
from vinfer.errors import AnswerError

Values = dict[str, float]
"""The figures of one turn by name; times in seconds."""
TURN_SECONDS = 1200.0
"""A server that needs longer for one turn of a load hangs, or is of no use."""


@dataclasses.dataclass(frozen=True)
class Side:
    """A running server.

    Attributes:
        fields: of every request: those of its dialect, greedy.
    """

    server: Server
    served: Served
    endpoint: Endpoint
    fields: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.server.name


async def in_turns(
    what: str,
    sides: Sequence[Side],
    repeats: int,
    measure: Callable[[Side, int], Awaitable[Values]],
) -> dict[str, dict[str, Any]]:
    """Measure every side once per turn; each turn begins with another side.

    A side whose request fails, or that does not end, is out of this load, with its reason. A slow one is
    measured in the first turn only.

    Returns:
        By side: `turns` with the values of each turn, and `median`; or `failure`.
    """
    turns: dict[str, list[Values]] = {side.name: [] for side in sides}
    failures: dict[str, str] = {}
    for turn in range(repeats):
        first = turn % max(1, len(sides))
        for side in (*sides[first:], *sides[:first]):
            if side.name in failures or (turn and side.server.is_slow):
                continue
            try:
                values = await _within(TURN_SECONDS, measure(side, turn))
            except AnswerError as error:
                failures[side.name] = error.message
                say(f"{what}, {side.name}: {error.message}")
            else:
                turns[side.name].append(values)
                shown = ", ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:3])
                say(f"{what}, turn {turn + 1}, {side.name}: {shown}")
    return {
        name: {"failure": failures[name]} if name in failures else {"turns": values, "median": median(values)}
        for name, values in turns.items()
    }


async def _within(seconds: float, measurement: Awaitable[Values]) -> Values:
    try:
        async with asyncio.timeout(seconds):
            return await measurement
    except TimeoutError:
        raise AnswerError(f"no end within {seconds:g} s") from None


def median(turns: Sequence[Values]) -> Values:
    """Return the median of each figure over the turns."""
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]} if turns else {}


def ratio(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None, figure: str) -> float | None:
    """Return the median over turns of A / B for a figure; None if one of them does not have it.

    Both of a pair were measured within the same turn, so that noise which lasts longer hits both.
    """
    pairs = zip((a or {}).get("turns", ()), (b or {}).get("turns", ()), strict=False)
    ratios = [x[figure] / y[figure] for x, y in pairs if figure in x and y.get(figure)]
    return statistics.median(ratios) if ratios else None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
