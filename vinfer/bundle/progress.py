"""How far a step of a load or a build has come."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""
ModelProgress = Callable[[str, str, int, int], None]
"""Called with (model name, phase, done, total)."""
