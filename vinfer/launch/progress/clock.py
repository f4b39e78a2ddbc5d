"""Knows when each phase began: adds elapsed and expected seconds to progress, and records times."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from vinfer.launch.progress.times import PhaseTimes, Work

# Phases that wait for somebody else say nothing about this machine.
_NOT_RECORDED = frozenset({"waiting for another build", "ready"})


@dataclasses.dataclass(frozen=True, slots=True)
class PhaseReport:
    """How far a model is.

    Attributes:
        done, total: units of work; bytes where `is_bytes` says so.
        elapsed_seconds: since the phase began.
        expected_seconds: of the whole phase; None if that is not known.
        start_seconds: since the process began to load.
    """

    name: str
    phase: str
    done: int
    total: int
    elapsed_seconds: float
    expected_seconds: float | None
    start_seconds: float

    @property
    def is_bytes(self) -> bool:
        return self.phase in ("downloading", "loading weights")

    @property
    def is_new(self) -> bool:
        """Whether the phase has just begun."""
        return self.elapsed_seconds == 0


class PhaseClock:
    """Receives progress as (model name, phase, done, total), from any thread; models load side by side.

    Args:
        show: receives each report.
    """

    def __init__(self, times: PhaseTimes, show: Callable[[PhaseReport], None]) -> None:
        self._times = times
        self._show = show
        self._lock = threading.Lock()
        self._work: dict[str, Work] = {}
        # The phase of each model, and when it began.
        self._phases: dict[str, tuple[str, float]] = {}
        self._started = time.monotonic()

    def expect(self, name: str, work: Work) -> None:
        """Take what there is to do for a model from now on."""
        self._work[name] = work

    def __call__(self, name: str, phase: str, done: int, total: int) -> None:
        """Report progress."""
        now = time.monotonic()
        with self._lock:
            before, began = self._phases.get(name, ("", now))
            if before != phase:
                self._record(name, before, now - began)
                self._phases[name] = (phase, now)
                began = now
            elapsed = now - began
            work = self._work.get(name)
            expected = None if work is None else self._times.expected(phase, work)
            if expected is None and done and elapsed and total > done:
                expected = elapsed * total / done
            self._show(PhaseReport(name, phase, done, total, elapsed, expected, now - self._started))

    def _record(self, name: str, phase: str, seconds: float) -> None:
        if phase and name in self._work and phase not in _NOT_RECORDED:
            self._times.record(phase, self._work[name], seconds)
