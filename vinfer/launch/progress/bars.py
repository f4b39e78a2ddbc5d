"""Progress as bars on a terminal: one per phase, with elapsed and expected time; log lines go above them."""

from __future__ import annotations

import logging
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vinfer.launch.progress.clock import PhaseReport
from vinfer.launch.progress.lines import ProgressLines
from vinfer.launch.terminal import size_words


class ProgressBars:
    """Shows the phase that each model is in; finished ones stay above it, until `close`. Lines follow it."""

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
        self._running: dict[str, tuple[str, TaskID]] = {}
        self._is_open = False
        self._lines: ProgressLines | None = None

    def __call__(self, report: PhaseReport) -> None:
        """Show one report; any thread."""
        if self._lines is not None:
            # An engine is restarted while the server serves.
            self._lines(report)
            return
        if report.phase == "ready":
            self._finish(report.name)
            return
        if not self._is_open:
            self._open()
        phase, task = self._running.get(report.name, (None, None))
        if task is None or phase != report.phase:
            self._finish(report.name)
            description = f"{report.name}: {report.phase}"
            task = self._progress.add_task(description, total=None, count="", expected="")
            self._running[report.name] = (report.phase, task)
        has_count = report.total > 1
        self._progress.update(
            task,
            total=report.total if has_count else None,
            completed=report.done if has_count else 0,
            count=_count(report) if has_count else "",
            expected="" if report.expected_seconds is None else f"of about {report.expected_seconds:.0f} s",
        )

    def close(self) -> None:
        """Leave the terminal as it was, with the finished bars above."""
        self._lines = self._lines or ProgressLines()
        if self._is_open:
            for name in list(self._running):
                self._finish(name)
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

    def _finish(self, name: str) -> None:
        _, task_id = self._running.pop(name, ("", None))
        if task_id is not None:
            total = next(task.total for task in self._progress.tasks if task.id == task_id) or 1
            self._progress.update(task_id, total=total, completed=total)
            self._progress.stop_task(task_id)


def _count(report: PhaseReport) -> str:
    if report.is_bytes:
        return f"{size_words(report.done)} of {size_words(report.total)}"
    return f"{report.done}/{report.total}"


def _send_logs_to(stream: object) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setStream(stream)
