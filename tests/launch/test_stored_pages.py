"""Machine code that was compiled elsewhere decides how many pages a device gets, if it wastes little."""

from __future__ import annotations

import pytest

from vinfer.launch.kv_memory import closest_stored


@pytest.mark.parametrize(
    ("fit", "stored", "chosen"),
    [
        ((100,), [], (100,)),
        ((100,), [(100,)], (100,)),
        ((100,), [(90,)], (90,)),
        ((100,), [(89,)], (100,)),
        ((100,), [(101,)], (100,)),
        ((100,), [(90,), (95,), (101,)], (95,)),
        # Groups of layers: all of them must fit.
        ((100, 50), [(95, 51)], (100, 50)),
        ((100, 50), [(95, 44)], (100, 50)),
        ((100, 50), [(95, 45), (95,)], (95, 45)),
    ],
)
def test_the_largest_that_fits_and_wastes_little(
    fit: tuple[int, ...], stored: list[tuple[int, ...]], chosen: tuple[int, ...]
) -> None:
    assert closest_stored(fit, stored) == chosen
