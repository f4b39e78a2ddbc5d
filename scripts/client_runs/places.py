"""Paths of the checkout and of the environments that scripts/clients creates in it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

SERVER = ROOT / ".venv" / "dev"
"""vinfer, the demo weights and, once scripts/test has run, torch."""

CLIENTS = ROOT / ".venv" / "clients"
NODE_CLIENTS = CLIENTS / "node"
GENERATORS = ROOT / ".venv" / "generators"
"""Generators of clients from /openapi.json; their packages exclude those of some clients."""
NODE_GENERATORS = GENERATORS / "node"


def python(environment: Path) -> Path:
    return environment / "bin" / "python"
