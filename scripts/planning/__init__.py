"""The parts of scripts/plan-figures."""

from __future__ import annotations
