"""How long phases take: measured on this machine and kept in the cache, or typical of two CPU cores.

A time is that of a unit of work, so that one model says something about another. Pure arithmetic, and a file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

FILE = "phase-times.json"
BUILD_PHASES = ("reading checkpoint", "importing easydel", "converting weights", "exporting programs")
START_PHASES = ("starting jax", "loading weights", "preparing programs", "warming up")
# What the times of programs are kept under: with stored machine code they are read, not compiled.
_COMPILED, _STORED = "compiling programs", "reading programs"
# Measured on two cores with SmolLM2-135M: seconds per phase, per byte of weights, or per program and weight.
_TYPICAL: Mapping[str, float] = {
    "starting jax": 2.0,
    "reading checkpoint": 1.0,
    "importing easydel": 20.0,
    "converting weights": 3e-9,
    "exporting programs": 0.008,
    "loading weights": 2.5e-9,
    _COMPILED: 0.014,
    _STORED: 0.0007,
    "warming up": 1.0,
}
_PER_BYTE = frozenset({"converting weights", "loading weights"})
_PER_PROGRAM = frozenset({"exporting programs", "preparing programs"})
# How much a new measurement counts against those before.
_NEW_SHARE = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """What there is to do for a model.

    Attributes:
        platform: of the devices.
        weight_bytes: of one device.
        num_weights: arrays, from which the size of a program follows.
        has_code: whether machine code is stored for the devices.
    """

    platform: str
    weight_bytes: int
    num_weights: int
    num_programs: int
    has_code: bool = False

    def units(self, phase: str) -> float:
        """Return how much of a phase there is: bytes, programs times weights, or 1."""
        if phase in _PER_BYTE:
            return self.weight_bytes
        return self.num_programs * self.num_weights if phase in _PER_PROGRAM else 1

    def kind(self, phase: str) -> str:
        """Return what the times of a phase are kept under."""
        if phase == "preparing programs":
            return _STORED if self.has_code else _COMPILED
        return phase

    def key(self, phase: str) -> str:
        """Return the same with the platform; a build runs on the CPU, whatever it is for."""
        return phase if phase in BUILD_PHASES else f"{self.platform}: {self.kind(phase)}"


class PhaseTimes:
    """Seconds per unit of each phase.

    Args:
        directory: the cache; a file in it keeps what was measured. One that cannot be written is no error.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / FILE
        self._measured = _read(self._file)

    def expected(self, phase: str, work: Work) -> float | None:
        """Return the seconds that a phase takes; None if nothing is known of it."""
        seconds = self._measured.get(work.key(phase))
        if seconds is None and (work.platform == "cpu" or phase in BUILD_PHASES):
            seconds = _TYPICAL.get(work.kind(phase))
        return None if seconds is None else seconds * work.units(phase)

    def together(self, phases: Iterable[str], work: Work) -> float | None:
        """Return the seconds of several phases; None if one of them is not known."""
        found = [self.expected(phase, work) for phase in phases]
        return None if None in found else sum(seconds for seconds in found if seconds is not None)

    def record(self, phase: str, work: Work, seconds: float) -> None:
        """Keep how long a phase took."""
        key, measured = work.key(phase), seconds / max(work.units(phase), 1)
        before = self._measured.get(key, measured)
        self._measured[key] = before + _NEW_SHARE * (measured - before)
        new = self._file.with_name(f".{FILE}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(self._measured, indent=2))
            new.replace(self._file)
        except OSError:
            return


def _read(file: Path) -> dict[str, float]:
    """Return what was measured; nothing if the file is missing or wrong."""
    try:
        content = json.loads(file.read_text())
        return {str(key): float(seconds) for key, seconds in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
