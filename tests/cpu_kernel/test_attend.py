"""The CPU's attention gives what `paged_attention` gives, which is plain XLA, and reads only what is seen."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vinfer.compiler import paged_attention
from vinfer.compiler.paged_attention import NO_PAGE
from vinfer.cpu_kernel.calls import attend

pytestmark = pytest.mark.compiles

MAX_LEN = 96


@dataclasses.dataclass(frozen=True)
class Case:
    positions: tuple[tuple[int, ...], ...]
    heads: int = 6
    kv_heads: int = 2
    dim: int = 32
    value_dim: int = 32
    page_size: int = 8
    window: int | None = None
    has_sinks: bool = False
    dtype: str = "float32"


CASES = {
    "one token": Case(((0,),)),
    "page edges": Case(((7,), (8,), (15,), (16,), (95,))),
    "rows without a token": Case(((5,), (MAX_LEN,), (40,))),
    "several tokens": Case(((30, 31, 32, 33), (0, 1, 2, MAX_LEN), (MAX_LEN,) * 4)),
    "more tokens than share a page": Case((tuple(range(20, 53)), (*range(17), *[MAX_LEN] * 16))),
    "many tokens with a window": Case((tuple(range(30, 70)),), window=20),
    "window": Case(((5,), (20,), (63,), (64,)), window=20),
    "window of a page": Case(((7,), (8,), (9,), (80,)), window=8),
    "sinks": Case(((0,), (50,), (MAX_LEN,)), has_sinks=True),
    "every head its own keys": Case(((50,),), heads=4, kv_heads=4),
    "one KV head": Case(((50, 51),), heads=5, kv_heads=1),
    "small heads": Case(((33,), (70,)), dim=16, value_dim=16),
    "odd sizes": Case(((33,), (70,)), dim=80, value_dim=48),
    "large heads": Case(((33,), (70,)), dim=256, value_dim=256),
    "pages of one": Case(((3,), (13,)), page_size=1),
    "pages of 32": Case(((31,), (32,), (90,)), page_size=32),
    "bfloat16": Case(((31,), (90,)), dtype="bfloat16"),
    "float16": Case(((31,), (90,)), dtype="float16"),
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    query: jax.Array
    k: jax.Array
    v: jax.Array
    table: jax.Array
    seen: paged_attention.Visible
    sinks: jax.Array | None


def inputs_of(case: Case) -> Inputs:
    draw = np.random.default_rng(1)
    rows, length = len(case.positions), len(case.positions[0])
    pages_of_row = MAX_LEN // case.page_size
    num_pages = rows * pages_of_row + 3
    shape = (num_pages, case.page_size, case.kv_heads)
    # Large scores, so that a running maximum matters.
    query = 3 * draw.normal(size=(rows, length, case.heads, case.dim))
    k, v = (draw.normal(size=(*shape, size)).reshape(*shape[:2], -1) for size in (case.dim, case.value_dim))
    table = draw.permutation(num_pages)[: rows * pages_of_row].reshape(rows, pages_of_row)
    positions = jnp.asarray(case.positions, jnp.int32)
    return Inputs(
        jnp.asarray(query, case.dtype),
        jnp.asarray(k, case.dtype),
        jnp.asarray(v, case.dtype),
        jnp.asarray(table, jnp.int32),
        paged_attention.visible(positions, max_model_len=MAX_LEN, window=case.window),
        jnp.asarray(draw.normal(size=case.heads), jnp.float32) if case.has_sinks else None,
    )


@jax.jit
def attended(
    query: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array,
    limits: tuple[jax.Array, jax.Array],
    sinks: jax.Array | None,
) -> jax.Array:
    return attend(query * query.shape[3] ** -0.5, k, v, table, *limits, sinks)


def run(inputs: Inputs) -> np.ndarray:
    seen = inputs.seen
    return np.asarray(
        attended(inputs.query, inputs.k, inputs.v, inputs.table, (seen.first, seen.end), inputs.sinks)
    )


def plain(inputs: Inputs, case: Case) -> np.ndarray:
    inputs = dataclasses.replace(
        inputs, **{name: getattr(inputs, name).astype(jnp.float32) for name in ("query", "k", "v")}
    )
    return np.asarray(
        paged_attention.attend(
            inputs.query,
            inputs.k,
            inputs.v,
            inputs.table,
            inputs.seen,
            num_kv_heads=case.kv_heads,
            scale=case.dim**-0.5,
            block_len=case.page_size,
            sinks=inputs.sinks,
        )
    )


@pytest.mark.parametrize("name", CASES)
def test_it_gives_what_plain_attention_gives(name: str) -> None:
    case = CASES[name]
    inputs = inputs_of(case)
    tolerance = {"float32": 2e-6, "bfloat16": 2e-2, "float16": 2e-3}[case.dtype]
    expected = plain(inputs, case)
    np.testing.assert_allclose(run(inputs), expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("name", ["several tokens", "window", "page edges", "many tokens with a window"])
def test_nothing_is_read_that_no_token_sees(name: str) -> None:
    """What is not seen is NaN, and pages that no token sees are not there."""
    case = CASES[name]
    inputs = inputs_of(case)
    clean = run(inputs)
    first, end = (np.asarray(limit) for limit in (inputs.seen.first, inputs.seen.end))
    is_seen = np.zeros(inputs.k.shape[:2], bool)
    table = np.asarray(inputs.table).copy()
    for row, pages in enumerate(table):
        places = np.arange(MAX_LEN).reshape(-1, case.page_size)
        seen = ((places >= first[row, :, None, None]) & (places < end[row, :, None, None])).any(axis=0)
        is_seen[pages] = seen
        pages[~seen.any(axis=1)] = NO_PAGE
    k, v = (np.where(is_seen[:, :, None], pool, np.nan) for pool in (inputs.k, inputs.v))
    spoilt = dataclasses.replace(inputs, k=jnp.asarray(k), v=jnp.asarray(v), table=jnp.asarray(table))
    np.testing.assert_array_equal(run(spoilt), clean)


def test_a_row_has_the_same_bits_in_every_batch() -> None:
    case = CASES["page edges"]
    inputs = inputs_of(case)
    whole = run(inputs)
    for row in range(len(case.positions)):
        limits = (inputs.seen.first[row : row + 1], inputs.seen.end[row : row + 1])
        alone = attended(
            inputs.query[row : row + 1], inputs.k, inputs.v, inputs.table[row : row + 1], limits, None
        )
        np.testing.assert_array_equal(np.asarray(alone), whole[row : row + 1])


@pytest.mark.parametrize("lanes", [16, 8, 4])
def test_vectors_of_other_cpus_give_the_same(lanes: int, on_other_cpu: Callable[[int, int], None]) -> None:
    on_other_cpu(lanes, 2)
    for name in ("several tokens", "odd sizes", "sinks"):
        inputs = inputs_of(CASES[name])
        scale = inputs.query.shape[3] ** -0.5
        compute = jax.jit(functools.partial(attend, inputs.query * scale, inputs.k, inputs.v, inputs.table))
        product = compute(inputs.seen.first, inputs.seen.end, inputs.sinks)
        np.testing.assert_allclose(product, plain(inputs, CASES[name]), atol=1e-5)


def test_scores_of_every_size_give_probabilities() -> None:
    """The exponential is right from 0 to where float32 ends."""
    case = Case(((60,),), heads=1, kv_heads=1, dim=16, value_dim=16)
    inputs = inputs_of(case)
    for scale in (0.0, 1e-3, 1.0, 10.0, 100.0):
        scaled = dataclasses.replace(inputs, query=inputs.query * scale)
        np.testing.assert_allclose(run(scaled), plain(scaled, case), atol=3e-6)
