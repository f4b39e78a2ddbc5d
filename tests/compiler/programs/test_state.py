"""What a slot costs: its counts are as narrow as the longest answer allows, and exact up to it."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from vinfer.compiler.sampler import process_logits
from vinfer.compiler.state import state_specs

pytestmark = pytest.mark.compiles

VOCAB = 128_256


@pytest.mark.parametrize(
    ("max_model_len", "dtype", "bytes_per_token"),
    [(1, "uint16", 2.125), (65_535, "uint16", 2.125), (65_536, "int32", 4.125), (1_048_576, "int32", 4.125)],
)
def test_a_slot_costs_little_more_than_a_count_per_token(
    max_model_len: int, dtype: str, bytes_per_token: float
) -> None:
    specs = state_specs(VOCAB, max_model_len, num_slots=64)
    (counts,) = (spec for spec in specs if spec.name == "output_counts")
    assert counts.dtype == dtype
    one_device = dict.fromkeys(("dp", "fsdp", "ep", "tp", "sp"), 1)
    num_bytes = sum(spec.num_bytes_per_device(one_device) for spec in specs)
    small = sum(math.prod(spec.shape) * 4 for spec in specs if VOCAB // 32 not in spec.shape[1:])
    assert 0 <= num_bytes - 64 * VOCAB * bytes_per_token <= small - 64 * VOCAB * 4


@pytest.mark.parametrize("max_model_len", [65_535, 65_536])
def test_an_answer_of_one_token_alone_is_counted_exactly(max_model_len: int) -> None:
    """Penalties grow with the count, so a count that wraps around would undo them."""
    row = {
        spec.name: np.full(spec.shape, spec.initial, spec.dtype)
        for spec in state_specs(8, max_model_len, num_slots=1)
    }
    row["output_counts"][0, 3] = max_model_len - 1
    row = {name: jax.numpy.asarray(values) for name, values in row.items()}
    row["output_counts"] = row["output_counts"].at[0, 3].add(np.ones((), row["output_counts"].dtype))
    row["frequency_penalty"] = np.full(1, 2.0, np.float32)
    logits = process_logits(np.zeros((1, 8), np.float32), row, num_tokens=8)
    assert np.asarray(logits).tolist() == [[0, 0, 0, -2.0 * max_model_len, 0, 0, 0, 0]]
