"""Kernels as other CPUs have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from vinfer.cpu_kernel import calls
from vinfer.cpu_kernel.calls import TARGETS
from vinfer.cpu_kernel.code import F32, Target


@pytest.fixture
def on_other_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], None]]:
    """Return what makes calls use kernels for vectors of so many lanes and tiles of so many rows."""

    def pretend(lanes: int, max_rows: int) -> None:
        monkeypatch.setattr(calls, "native_target", lambda _: Target(lanes, max_rows, F32))
        for (kernel, dtype), name in TARGETS.items():
            monkeypatch.setitem(TARGETS, (kernel, dtype), f"{name}.test.{lanes}.{max_rows}")
        calls._register.cache_clear()

    yield pretend
    calls._register.cache_clear()
