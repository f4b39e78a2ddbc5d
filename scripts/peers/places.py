"""Paths of the environments and the model files that `scripts/bench --peers` creates in the checkout."""

from __future__ import annotations

from pathlib import Path

from benchmark.process import ROOT

ENVIRONMENTS = ROOT / ".venv" / "peers"
MODELS = ROOT / ".build" / "peers"
PAGE = ROOT / "docs" / "reports" / "speed.md"
CHARTS = PAGE.parent / "speed"


def python(environment: str) -> Path:
    """Return the interpreter of an environment."""
    return ENVIRONMENTS / environment / "bin" / "python"
