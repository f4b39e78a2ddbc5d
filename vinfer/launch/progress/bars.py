"""Progress as bars on a terminal: one per phase, with elapsed and expected time; log lines go above them."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vinfer.launch.progress.clock import PhaseReport
from vinfer.launch.terminal import size_words


class ProgressBars:
    """Shows the phase that runs; finished ones stay above it, until `close`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[expected]}", markup=False),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._phase: tuple[str, str] | None = None
        self._is_open = False

    def __call__(self, report: PhaseReport) -> None:
        """Show one report; any thread."""
        if report.phase == "ready":
            self._finish()
            return
        if not self._is_open:
            self._open()
        if self._phase != (report.name, report.phase):
            self._finish()
            self._phase = (report.name, report.phase)
            description = f"{report.name}: {report.phase}"
            self._task = self._progress.add_task(description, total=None, count="", expected="")
        assert self._task is not None
        has_count = report.total > 1
        self._progress.update(
            self._task,
            total=report.total if has_count else None,
            completed=report.done if has_count else 0,
            count=_count(report) if has_count else "",
            expected="" if report.expected_seconds is None else f"of about {report.expected_seconds:.0f} s",
        )

    def close(self) -> None:
        """Leave the terminal as it was, with the finished bars above."""
        if self._is_open:
            self._finish()
            self._is_open = False
            self._progress.stop()
            _send_logs_to(sys.stderr)

    def _open(self) -> None:
        self._progress.start()
        self._is_open = True
        # A process that is killed would leave none.
        self._console.show_cursor(True)
        # rich has replaced it by a stream that writes above the bars.
        _send_logs_to(sys.stderr)

    def _finish(self) -> None:
        if self._task is not None:
            task = next(task for task in self._progress.tasks if task.id == self._task)
            total = task.total or 1
            self._progress.update(self._task, total=total, completed=total)
            self._progress.stop_task(self._task)
            self._task = None


def _count(report: PhaseReport) -> str:
    if report.is_bytes:
        return f"{size_words(report.done)} of {size_words(report.total)}"
    return f"{report.done}/{report.total}"


def _send_logs_to(stream: object) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setStream(stream)
