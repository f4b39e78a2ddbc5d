"""The rotary table, against values worked by hand and the published formulas in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vinfer.checkpoint.rope import RopeFacts


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (RopeFacts(theta=10000.0, rotary_dim=4), [1.0, 0.01]),
        (RopeFacts(theta=10000.0, rotary_dim=4, rope_type="linear", factor=4.0), [0.25, 0.0025]),
        (RopeFacts(theta=10000.0, rotary_dim=4, frequency_divisors=(1.0, 8.0)), [1.0, 0.00125]),
    ],
)
def test_frequencies_worked_by_hand(rope: RopeFacts, expected: list[float]) -> None:
    frequencies = rope.inverse_frequencies(128)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, expected, rtol=2e-7)
    assert rope.attention_factor == 1.0


def test_llama3_scales_long_waves_keeps_short_ones_and_blends_between() -> None:
    """The formula of Meta's release, one frequency at a time."""
    rope = RopeFacts(
        theta=500000.0,
        rotary_dim=64,
        rope_type="llama3",
        factor=32.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    expected, kinds = [], set()
    for index in range(32):
        frequency = 500000.0 ** (-2 * index / 64)
        wavelen = 2 * math.pi / frequency
        if wavelen < 8192 / 4.0:
            kinds.add("short")
            expected.append(frequency)
        elif wavelen > 8192 / 1.0:
            kinds.add("long")
            expected.append(frequency / 32.0)
        else:
            kinds.add("between")
            smooth = (8192 / wavelen - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * frequency / 32.0 + smooth * frequency)
    assert kinds == {"short", "long", "between"}
    frequencies = rope.inverse_frequencies(128)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, expected, rtol=2e-6)
