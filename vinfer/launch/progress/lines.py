"""Progress as lines, for logs and pipes: one when a phase begins, and one now and then while it lasts."""

from __future__ import annotations

import logging
from collections.abc import Callable

from vinfer.launch.progress.clock import PhaseReport
from vinfer.launch.terminal import size_words

logger = logging.getLogger(__name__)

_LINES_PER_PHASE = 4
_SHORT_PHASE_SECONDS = 5.0


class ProgressLines:
    """Writes the beginning of every phase, and a few lines of those that take long.

    Args:
        say: receives each line; without one, lines are logged.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda line: logger.info("%s", line))
        self._last: dict[str, tuple[str, int]] = {}

    def __call__(self, report: PhaseReport) -> None:
        """Write one report; any thread."""
        part = report.done * _LINES_PER_PHASE // max(report.total, 1)
        is_short = report.elapsed_seconds < _SHORT_PHASE_SECONDS
        last = self._last.get(report.name)
        if last == (report.phase, part) or (last is not None and last[0] == report.phase and is_short):
            return
        self._last[report.name] = (report.phase, part)
        self._say(f"{report.name}: {described(report)} ({report.start_seconds:.0f} s)")

    def close(self) -> None:
        """There is nothing to put away."""


def described(report: PhaseReport) -> str:
    """Return phase, progress and expected time, such as `loading weights 0.2 of 0.6 GiB, about 2 s`."""
    words = report.phase
    if report.total > 1 and report.is_bytes:
        words += f" {size_words(report.done)} of {size_words(report.total)}"
    elif report.total > 1:
        words += f" {report.done}/{report.total}"
    left = report.expected_seconds
    if left is not None:
        left -= report.elapsed_seconds
    return words if left is None or left < 1 else f"{words}, about {left:.0f} s"
