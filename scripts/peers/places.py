"""Paths of the environments and the model files that `scripts/bench --peers` creates in the checkout."""

from __future__ import annotations

from pathlib import Path

from benchmark.process import ROOT

ENVIRONMENTS = ROOT / ".venv" / "peers"
MODELS = ROOT / ".build" / "peers"
PAGE = ROOT / "docs" / "reports" / "speed.md"
FIGURES = PAGE.with_suffix(".json")
"""What the page is made of. A run measures some parts and keeps the others."""
CHARTS = PAGE.parent / "speed"


def python(environment: str) -> Path:
    """Return the interpreter of an environment."""
    return ENVIRONMENTS / environment / "bin" / "python"
