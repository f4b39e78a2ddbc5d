"""The rotary table against hand-computed values and the published formulas in float64."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.rope.frequencies import (
    longrope_attention_factor,
    yarn_attention_factor,
    yarn_mscale,
)
from vinfer.errors import CheckpointError

LONGROPE = RopeFacts(
    theta=10000.0,
    rotary_dim=4,
    rope_type="longrope",
    short_factors=(1.0, 2.0),
    long_factors=(4.0, 5.0),
    original_max_position_embeddings=64,
    attention_factor=1.25,
)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (RopeFacts(theta=10000.0, rotary_dim=4), [1.0, 0.01]),
        (RopeFacts(theta=10000.0, rotary_dim=4, rope_type="linear", factor=4.0), [0.25, 0.0025]),
        (RopeFacts(theta=10000.0, rotary_dim=4, frequency_divisors=(1.0, 8.0)), [1.0, 0.00125]),
        (
            RopeFacts(
                theta=10000.0,
                rotary_dim=4,
                rope_type="dynamic",
                factor=4.0,
                original_max_position_embeddings=128,
            ),
            [1.0, 0.01],
        ),
        # Exponents refer to the whole head: 0/8, 2/8, 4/8; the last pair does not rotate.
        (
            RopeFacts(theta=10000.0, rotary_dim=8, rope_type="proportional", factor=2.0, num_rotated=3),
            [0.5, 0.05, 0.005, 0.0],
        ),
    ],
)
def test_frequencies_worked_by_hand(rope: RopeFacts, expected: list[float]) -> None:
    frequencies = rope.inverse_frequencies(128)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, expected, rtol=2e-7)
    assert rope.attention_factor == 1.0


@pytest.mark.parametrize(("length", "expected"), [(1, [1.0, 0.005]), (64, [1.0, 0.005]), (65, [0.25, 0.002])])
def test_longrope_chooses_once_for_the_longest_sequence_served(length: int, expected: list[float]) -> None:
    np.testing.assert_allclose(LONGROPE.inverse_frequencies(length), expected, rtol=2e-7)


def test_dynamic_is_not_served_beyond_its_limit() -> None:
    rope = RopeFacts(
        theta=1e4, rotary_dim=4, rope_type="dynamic", factor=4.0, original_max_position_embeddings=128
    )
    with pytest.raises(CheckpointError, match=r"max_model_len is 129.*128: lower max_model_len"):
        rope.table(129)


def test_the_table_holds_cosines_then_sines_times_the_attention_factor() -> None:
    table = LONGROPE.table(3)
    assert table.dtype == np.float32
    angles = np.outer([0, 1, 2], [1.0, 0.005])
    np.testing.assert_allclose(
        table, 1.25 * np.concatenate([np.cos(angles), np.sin(angles)], axis=1), rtol=1e-6
    )


def test_the_facts_are_json() -> None:
    facts = dataclasses.asdict(LONGROPE)
    assert json.loads(json.dumps(facts)) == facts | {"short_factors": [1.0, 2.0], "long_factors": [4.0, 5.0]}


def test_llama3_scales_long_waves_keeps_short_ones_and_blends_between() -> None:
    """Compare with the formula of Meta's release, one frequency at a time."""
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


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_keeps_fast_waves_and_stretches_slow_ones(truncate: bool) -> None:
    """Compare with the paper's formula (section 3.2), one frequency at a time."""
    rope = RopeFacts(
        theta=10000.0,
        rotary_dim=64,
        rope_type="yarn",
        factor=16.0,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=truncate,
        original_max_position_embeddings=4096,
    )

    # Pair i turns r times in the original length: 4096 / (2 pi theta^(2i/64)) = r, solved for i.
    def pair(turns: float) -> float:
        return 64 / 2 * math.log(4096 / (2 * math.pi * turns)) / math.log(10000.0)

    first, last = pair(32.0), pair(1.0)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    expected = []
    for index in range(32):
        stretched = min(max((index - first) / (last - first), 0.0), 1.0)
        frequency = 10000.0 ** (-2 * index / 64)
        expected.append(frequency * (1 - stretched) + frequency / 16.0 * stretched)
    assert 0 < first < last < 31
    np.testing.assert_allclose(rope.inverse_frequencies(128), expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("factor", "mscale", "mscale_all_dim", "expected"),
    [
        (40.0, 0.0, 0.0, 0.1 * math.log(40) + 1),
        (40.0, 0.707, 0.0, 0.1 * math.log(40) + 1),
        (40.0, 1.0, 1.0, 1.0),
        (40.0, 1.0, 0.5, (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1)),
        (0.5, 0.0, 0.0, 1.0),
    ],
)
def test_yarn_attention_factor(factor: float, mscale: float, mscale_all_dim: float, expected: float) -> None:
    assert yarn_attention_factor(factor, mscale, mscale_all_dim) == pytest.approx(expected, rel=1e-12)


def test_yarn_mscale_is_one_where_nothing_is_stretched() -> None:
    assert yarn_mscale(1.0, 0.7) == 1.0
    assert yarn_mscale(math.e, 0.7) == pytest.approx(1.07)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 1.0), (32.0, math.sqrt(1 + 5 / 12))])
def test_longrope_attention_factor(factor: float, expected: float) -> None:
    assert longrope_attention_factor(factor, 4096) == pytest.approx(expected, rel=1e-12)
