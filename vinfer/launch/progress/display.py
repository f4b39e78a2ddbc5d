"""Chooses how progress is shown: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import os
import sys
from typing import Protocol

from vinfer.launch.progress.clock import PhaseReport
from vinfer.launch.progress.lines import ProgressLines


class Display(Protocol):
    """Shows progress until it is closed."""

    def __call__(self, report: PhaseReport) -> None:
        """Show one report; any thread."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


def progress_display(log_format: str = "text") -> Display:
    """Return bars if standard error is a terminal that can show them and logs are for people."""
    if log_format == "text" and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        # rich takes a tenth of a second to import.
        from vinfer.launch.progress.bars import ProgressBars

        return ProgressBars()
    return ProgressLines()
