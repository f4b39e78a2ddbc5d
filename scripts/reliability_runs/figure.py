"""What one measurement says, and what every measurement needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

Verdict = Literal["holds", "does not hold", "not measured"]


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Attributes:
        number: that of the figure in the list of wanted figures, or a word for those of none.
        wanted: what must hold, with its limit.
        measured: what was found, or why nothing was measured.
    """

    number: str
    wanted: str
    measured: str
    verdict: Verdict


def judged(number: str, wanted: str, measured: str, holds: bool) -> Figure:
    return Figure(number, wanted, measured, "holds" if holds else "does not hold")


def skipped(number: str, wanted: str, why: str) -> Figure:
    return Figure(number, wanted, why, "not measured")


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """The settings of this run.

    Attributes:
        folder: for configs, logs and sockets.
        soak_seconds: how long the soak takes.
        soak_requests: how many requests the second soak has.
        num_disconnects: how many clients leave.
    """

    folder: Path
    soak_seconds: float
    soak_requests: int
    num_disconnects: int


def percentile(values: list[float], fraction: float) -> float:
    """Return the value that a fraction of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(round(fraction * (len(ordered) - 1)), len(ordered) - 1)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
