"""How many random examples a property is tried with: in `scripts/test quick` a quarter of them."""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def examples(count: int, **more: Any) -> settings:
    """Return settings for so many examples; Hypothesis takes 100 where nothing is said."""
    return settings(max_examples=count * settings().max_examples // 100, **more)
