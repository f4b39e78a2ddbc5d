"""The product on a CPU: right for all sizes, the same bits in every batch, from many threads at once."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vinfer.cpu_kernel.calls import TARGETS, multiply
from vinfer.cpu_kernel.handlers import native_target
from vinfer.cpu_kernel.tiles import COLUMNS

pytestmark = pytest.mark.compiles

multiplied = jax.jit(multiply)
NATIVE = native_target("float32")
ROWS = (*range(1, 2 * NATIVE.max_rows + 2), 16, 33, 128)
WIDTHS = (1, COLUMNS - 1, COLUMNS, COLUMNS + 1, 99)
LENGTHS = (16, 48, 576)
# Weights of this width and length are more than one piece for any number of threads.
PIECES = (1111, 576)


@functools.cache
def operands(rows: int, width: int, length: int, dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    draw = np.random.default_rng(rows * 1000 + width)
    x, w = draw.normal(size=(rows, length)), draw.normal(size=(width, length))
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype)


def assert_right(product: jax.Array, x: jax.Array, w: jax.Array, tolerance: float) -> None:
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    scale = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(w, np.float64)).T
    assert np.abs(np.asarray(product, np.float64) - exact).max(initial=0) <= tolerance * scale.max()


@pytest.mark.parametrize("rows", ROWS)
def test_the_product_is_right(rows: int) -> None:
    for width, length in [*itertools.product(WIDTHS, LENGTHS), PIECES]:
        x, w = operands(rows, width, length)
        assert_right(multiplied(x, w), x, w, 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_weights_of_other_dtypes_are_summed_in_float32(dtype: str, tolerance: float) -> None:
    x, w = operands(5, 99, 4096, dtype)
    product = multiplied(x, w)
    assert product.dtype == dtype
    # Only the result is rounded: half a unit in the last place of the largest.
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    assert np.abs(np.asarray(product, np.float64) - exact).max() <= tolerance * np.abs(exact).max()


@pytest.mark.parametrize(("lanes", "max_rows"), [(16, 6), (8, 2), (4, 6)])
def test_vectors_of_other_cpus_give_the_same(
    lanes: int, max_rows: int, on_other_cpu: Callable[[int, int], None]
) -> None:
    on_other_cpu(lanes, max_rows)
    for rows, width in itertools.product((1, 2, 5, 13), (3, 9)):
        x, w = operands(rows, width, 48)
        assert_right(jax.jit(lambda x, w: multiply(x, w))(x, w), x, w, 1e-6)


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    x, w = operands(128, *PIECES)
    whole = np.asarray(multiplied(x, w))
    for first, rows in ((0, 1), (5, 1), (3, 2), (40, 8), (7, 33)):
        part = np.asarray(multiplied(x[first : first + rows], w))
        np.testing.assert_array_equal(part, whole[first : first + rows])


def test_leading_axes_are_rows() -> None:
    x, w = operands(6, 9, 48)
    np.testing.assert_array_equal(
        multiplied(x.reshape(2, 3, 48), w).reshape(6, 9), np.asarray(multiplied(x, w))
    )


def test_infinities_and_nans_stay_in_their_row() -> None:
    x, w = operands(7, 9, 48)
    bad = x.at[2, 47].set(jnp.nan).at[5, 0].set(jnp.inf)
    product, clean = np.asarray(multiplied(bad, w)), np.asarray(multiplied(x, w))
    assert np.isnan(product[2]).all()
    assert np.isinf(product[5]).all()
    others = [0, 1, 3, 4, 6]
    np.testing.assert_array_equal(product[others], clean[others])


def test_many_threads_at_once() -> None:
    """More calls than threads of XLA's pool: some have no helper, some get one when they are done."""
    cases = [operands(rows, *PIECES) for rows in (1, 3, 8, 16)]
    expected = [np.asarray(multiplied(*case)) for case in cases]

    def run(number: int) -> bool:
        case = number % len(cases)
        return bool((np.asarray(multiplied(*cases[case])) == expected[case]).all())

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(run, range(400)))


@pytest.mark.parametrize(("rows", "length", "is_called"), [(128, 48, True), (129, 48, False), (8, 40, False)])
def test_xla_computes_what_the_kernel_does_not(rows: int, length: int, is_called: bool) -> None:
    x, w = operands(rows, 9, length)
    lowered = multiplied.lower(x, w).as_text()
    assert (TARGETS["product", "float32"] in lowered) == is_called
    assert_right(multiplied(x, w), x, w, 1e-6)
