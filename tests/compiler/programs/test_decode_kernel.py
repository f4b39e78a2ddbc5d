"""The decode kernel, interpreted on the CPU, against plain attention in float64 over many pages and masks."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

sys.path.insert(0, str(Path(__file__).parent))

import decode_steps
from decode_steps import CASES, LENGTHS, Case, by_kernel, plain, step

from vinfer.bundle.kv_pages import addressable_pages
from vinfer.compiler import decode_kernel
from vinfer.compiler.decode_kernel import num_splits, supports, tile_len
from vinfer.compiler.paged_attention import NO_PAGE, visible

pytestmark = pytest.mark.compiles

TOLERANCE = 2e-6


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_it_attends_as_plain_attention_does(case: Case) -> None:
    of = step(case)
    np.testing.assert_allclose(by_kernel(case, of), plain(case, of), atol=TOLERANCE)


MIXED = Case(window=33, soft_cap=3.0, has_sinks=True)


@pytest.mark.parametrize("case", [Case(), MIXED], ids=repr)
@pytest.mark.parametrize("fill", [np.nan, np.inf, -1e30])
def test_what_an_old_owner_left_changes_no_bit(case: Case, fill: float) -> None:
    np.testing.assert_array_equal(by_kernel(case, step(case, fill=fill)), by_kernel(case, step(case, fill=0)))


@pytest.mark.parametrize("case", [Case(), MIXED], ids=repr)
def test_rows_that_see_nothing_get_zeros(case: Case) -> None:
    output = by_kernel(case, step(case))
    assert not output[LENGTHS.index(0)].any()
    assert all(output[row].any() for row, length in enumerate(LENGTHS) if length)


@pytest.mark.parametrize("case", [Case(), MIXED], ids=repr)
@pytest.mark.parametrize("row", range(len(LENGTHS)))
def test_a_row_is_the_same_whatever_the_others_need(case: Case, row: int) -> None:
    of = step(case)
    alone = tuple(length if place == row else 0 for place, length in enumerate(LENGTHS))
    output = by_kernel(dataclasses.replace(case, lengths=alone), of)
    np.testing.assert_array_equal(output[row], by_kernel(case, of)[row])


def test_pages_behind_a_window_need_not_exist() -> None:
    case = Case(window=33)
    of = step(case)
    passed = of.table.copy()
    for row, length in enumerate(LENGTHS):
        passed[row, : max(length - 33, 0) // case.page_size] = NO_PAGE
    assert (passed == NO_PAGE).sum() > (of.table == NO_PAGE).sum()
    of_passed = dataclasses.replace(of, table=passed)
    np.testing.assert_array_equal(by_kernel(case, of_passed), by_kernel(case, of))


def test_bfloat16_sums_in_float32() -> None:
    case = Case(dtype="bfloat16")
    of = step(case)
    output = by_kernel(case, of)
    assert output.dtype == jnp.bfloat16
    # Half a step of bfloat16 near 3 for the result, and the same again for the rounded probabilities.
    np.testing.assert_allclose(output.astype(np.float32), plain(case, of), atol=2e-2)


@pytest.mark.processes
def test_tp_splits_the_heads() -> None:
    """With fewer KV heads than devices, each device holds all of them, and uses the one of its queries."""
    cases = [
        {"heads": 8, "kv_heads": kv_heads, "has_sinks": has_sinks, "window": window}
        for kv_heads in (4, 2, 1)
        for has_sinks, window in ((False, None), (True, 33))
    ]
    process = subprocess.run(
        [sys.executable, decode_steps.__file__, json.dumps(cases)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    errors = json.loads(process.stdout)
    assert len(errors) == len(cases)
    assert max(errors) < TOLERANCE


def test_it_is_exported_for_any_number_of_pages() -> None:
    limit = addressable_pages("cuda", 128 * 32 * 2)
    (pages,) = export.symbolic_shape("pages", constraints=[f"pages <= {limit}"])
    shape = jax.ShapeDtypeStruct

    def run(query: Any, k: Any, v: Any, table: Any, positions: Any) -> jax.Array:
        seen = visible(positions, max_model_len=512, window=None)
        return decode_kernel.attend(query, k, v, table, seen, num_kv_heads=2, scale=1.0)

    pool = shape((pages, 128, 32), jnp.bfloat16)
    query, table = shape((3, 1, 4, 16), jnp.bfloat16), shape((3, 4), jnp.int32)
    exported = export.export(
        jax.jit(run),
        platforms=["cuda"],
        disabled_checks=[export.DisabledSafetyCheck.custom_call(decode_kernel.CUSTOM_CALL)],
    )(query, pool, pool, table, shape((3, 1), jnp.int32))
    again = export.deserialize(exported.serialize())
    assert again.mlir_module().count(decode_kernel.CUSTOM_CALL) == 1
    assert str(again.in_avals[1].shape[0]) == "pages"


def test_what_the_kernel_cannot_do_is_refused() -> None:
    def answer(length: int = 1, page_size: int = 128, *, has_images: bool = False) -> bool:
        positions = jnp.zeros((2, length), jnp.int32)
        spans = (positions, positions) if has_images else None
        seen = visible(positions, max_model_len=8, window=None, spans=spans)
        return supports(jnp.zeros((2, length, 4, 16)), jnp.zeros((4, page_size, 32)), seen)

    assert answer()
    assert answer(page_size=16)
    assert not answer(length=2)
    assert not answer(has_images=True)
    assert not answer(page_size=8)


@pytest.mark.parametrize(
    ("dim", "item_bytes", "expected"), [(64, 2, 128), (128, 2, 64), (256, 2, 32), (96, 2, 64), (512, 4, 16)]
)
def test_a_tile_fits_the_memory_of_a_multiprocessor(dim: int, item_bytes: int, expected: int) -> None:
    assert tile_len(128, dim, item_bytes) == expected


@pytest.mark.parametrize(
    ("rows", "kv_heads", "expected"), [(1, 8, 64), (4, 8, 16), (32, 8, 2), (128, 8, 1), (1, 1, 64)]
)
def test_few_rows_are_split_into_many_parts(rows: int, kv_heads: int, expected: int) -> None:
    assert num_splits(rows, kv_heads, pages_of_row=64) == expected
