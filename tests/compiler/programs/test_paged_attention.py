"""Attention over pages against plain attention in float64: whatever the pages, blocks and masks are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from vinfer.compiler.paged_attention import NO_PAGE, attend, visible, write

pytestmark = pytest.mark.compiles

Array = npt.NDArray[Any]

TOLERANCE = 2e-6
HEADS, DIM = 4, 16
MAX_MODEL_LEN = 100
ROWS = ((0, 1), (0, 40), (37, 23), (63, 1), (64, 36), (0, 0))
"""Start and length of what each row writes; the last one is padding, and the fifth ends at the limit."""
DECODE_ROWS = tuple((start, min(length, 1)) for start, length in ROWS)
IMAGES = ((1, 3, 20), (2, 39, 58), (4, 70, 90))
"""Row, first position and end of images that are seen both ways; each lies in what its row writes."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One dispatch; `rows` are (start, length) pairs."""

    rows: tuple[tuple[int, int], ...] = ROWS
    page_size: int = 8
    block_len: int = 32
    kv_heads: int = 2
    value_dim: int = DIM
    window: int | None = None
    has_images: bool = False
    soft_cap: float | None = None
    has_sinks: bool = False
    widens: bool = False
    seed: int = 0

    @property
    def length(self) -> int:
        return max(length for _, length in self.rows)

    def positions(self) -> Array:
        """Return int32 [rows, length]."""
        positions = np.full((len(self.rows), self.length), MAX_MODEL_LEN, np.int32)
        for row, (start, length) in enumerate(self.rows):
            positions[row, :length] = np.arange(start, start + length)
        return positions

    def spans(self) -> tuple[Array, Array] | None:
        if not self.has_images:
            return None
        first = np.zeros((len(self.rows), self.length), np.int32)
        end = np.zeros_like(first)
        for row, image_first, image_end in IMAGES:
            start, _ = self.rows[row]
            first[row, image_first - start : image_end - start] = image_first
            end[row, image_first - start : image_end - start] = image_end
        return first, end


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Queries, and the keys and values of every position of every row, in one order for all page sizes."""

    query: Array
    keys: Array
    values: Array
    sinks: Array

    @classmethod
    def drawn(cls, case: Case) -> Arrays:
        draw = np.random.default_rng(case.seed)

        def normal(*shape: int) -> Array:
            return draw.normal(size=shape).astype(np.float32)

        num_rows = len(case.rows)
        return cls(
            query=normal(num_rows, case.length, HEADS, DIM),
            keys=normal(num_rows, MAX_MODEL_LEN, case.kv_heads, DIM),
            values=normal(num_rows, MAX_MODEL_LEN, case.kv_heads, case.value_dim),
            sinks=normal(HEADS),
        )


def page_tables(case: Case) -> tuple[Array, int]:
    """Return int32 [rows, pages of a row], in no order, and how many pages there are, some without owner."""
    draw = np.random.default_rng(case.seed + 1)
    counts = [-(-(start + length) // case.page_size) if length else 0 for start, length in case.rows]
    num_pages = sum(counts) + 3
    free = list(draw.permutation(num_pages))
    tables = np.full((len(case.rows), -(-MAX_MODEL_LEN // case.page_size)), NO_PAGE, np.int32)
    for table, count in zip(tables, counts, strict=True):
        table[:count] = [free.pop() for _ in range(count)]
    return tables, num_pages


def pools(case: Case, arrays: Arrays, tables: Array, num_pages: int, *, fill: float = np.nan) -> list[Array]:
    """Return the pools of keys and values, with `fill` wherever no row has written."""
    written = []
    for new in (arrays.keys, arrays.values):
        pool = np.full((num_pages, case.page_size, new.shape[2] * new.shape[3]), fill, np.float32)
        for row, (start, length) in enumerate(case.rows):
            for position in range(start + length if length else 0):
                page = tables[row, position // case.page_size]
                pool[page, position % case.page_size] = new[row, position].ravel()
        written.append(pool)
    return written


@functools.cache
def program(case: Case, num_kv_heads: int) -> Callable[..., jax.Array]:
    """Return `attend` for the options of a case, compiled once for all rows, tables and pages."""

    @jax.jit
    def run(
        query: Any, k: Any, v: Any, table: Any, positions: Any, spans: Any, sinks: Any, first_kv_head: Any
    ) -> jax.Array:
        return attend(
            query,
            k,
            v,
            table,
            visible(positions, max_model_len=MAX_MODEL_LEN, window=case.window, spans=spans),
            num_kv_heads=num_kv_heads,
            scale=DIM**-0.5,
            block_len=case.block_len,
            soft_cap=case.soft_cap,
            sinks=sinks,
            first_kv_head=first_kv_head,
            widens=case.widens,
            latent_value_dim=case.value_dim if v is None else None,
        )

    return run


def paged(
    case: Case,
    arrays: Arrays,
    *,
    tables: Array | None = None,
    fill: float = np.nan,
    kv_head: int | None = None,
    is_latent: bool = False,
) -> Array:
    """Return what `attend` says.

    Args:
        kv_head: all queries use that head of the pages.
        is_latent: there are no values but the beginnings of keys.
    """
    own_tables, num_pages = page_tables(case)
    k, v = pools(case, arrays, own_tables, num_pages, fill=fill)
    # Which rows there are is data, but for their number.
    run = program(dataclasses.replace(case, rows=(), seed=0), case.kv_heads if kv_head is None else 1)
    sinks = arrays.sinks if case.has_sinks else None
    table = own_tables if tables is None else tables
    values = None if is_latent else v
    return np.asarray(run(arrays.query, k, values, table, case.positions(), case.spans(), sinks, kv_head))


def dense(case: Case, arrays: Arrays) -> Array:
    """Return float64 [rows, length, heads, value_dim]: a plain softmax over what each token sees."""
    output = np.zeros((len(case.rows), case.length, HEADS, case.value_dim))
    spans = case.spans()
    places = np.arange(MAX_MODEL_LEN)
    for row, (start, length) in enumerate(case.rows):
        positions = np.arange(start, start + length)[:, None]
        sees = places <= positions
        if case.window is not None:
            sees &= places > positions - case.window
        if spans is not None:
            first, end = (limit[row, :length, None] for limit in spans)
            sees |= (places >= first) & (places < end)
        for head in range(HEADS):
            kv_head = head // (HEADS // case.kv_heads)
            keys = arrays.keys[row, :, kv_head].astype(np.float64)
            scores = arrays.query[row, :length, head].astype(np.float64) @ keys.T * DIM**-0.5
            if case.soft_cap is not None:
                scores = case.soft_cap * np.tanh(scores / case.soft_cap)
            weights = np.exp(scores) * sees
            total = weights.sum(axis=1) + (np.exp(arrays.sinks[head]) if case.has_sinks else 0.0)
            output[row, :length, head] = weights @ arrays.values[row, :, kv_head] / total[:, None]
    return output


CASES = [
    *(Case(page_size=size, block_len=block) for size, block in ((1, 1), (1, 16), (8, 8), (8, 128), (32, 32))),
    *(Case(page_size=size, block_len=64, rows=DECODE_ROWS) for size in (1, 8, 32)),
    *(Case(kv_heads=kv_heads) for kv_heads in (1, 4)),
    *(Case(window=window) for window in (1, 7, 8, 33, MAX_MODEL_LEN)),
    *(Case(window=window, rows=DECODE_ROWS) for window in (1, 9)),
    *(Case(has_images=True, window=window) for window in (None, 5)),
    *(Case(soft_cap=2.0, rows=rows) for rows in (ROWS, DECODE_ROWS)),
    *(Case(has_sinks=True, window=window, rows=rows) for window in (None, 9) for rows in (ROWS, DECODE_ROWS)),
    *(Case(value_dim=value_dim, rows=rows) for value_dim in (8, 24) for rows in (ROWS, DECODE_ROWS)),
    Case(kv_heads=4, value_dim=24, window=33, has_images=True, soft_cap=3.0, has_sinks=True),
]


@pytest.mark.parametrize("widens", [False, True], ids=["grouped", "widened"])
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_it_attends_as_plain_attention_does(case: Case, widens: bool) -> None:
    arrays = Arrays.drawn(case)
    output = paged(dataclasses.replace(case, widens=widens), arrays)
    assert output.shape == (len(case.rows), case.length, HEADS, case.value_dim)
    np.testing.assert_allclose(output, dense(case, arrays), atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(8))
def test_random_rows_attend_as_plain_attention_does(seed: int) -> None:
    draw = np.random.default_rng(seed)
    starts = [int(draw.integers(0, MAX_MODEL_LEN - 20)) for _ in range(6)]
    case = Case(
        rows=(*((start, int(draw.integers(0, 20))) for start in starts), (0, 20)),
        page_size=int(draw.choice([1, 2, 4, 8])),
        block_len=int(draw.choice([8, 24, 64])),
        kv_heads=int(draw.choice([1, 2, 4])),
        window=[None, int(draw.integers(1, 30))][seed % 2],
        has_sinks=seed % 3 == 0,
        soft_cap=[None, None, 4.0][seed % 3],
        widens=seed % 4 > 1,
        seed=seed,
    )
    arrays = Arrays.drawn(case)
    np.testing.assert_allclose(paged(case, arrays), dense(case, arrays), atol=TOLERANCE)


@pytest.mark.parametrize("widens", [False, True], ids=["grouped", "widened"])
@pytest.mark.parametrize("fill", [0.0, np.nan])
@pytest.mark.parametrize(("rows", "window"), [(ROWS, None), (ROWS, 9), (DECODE_ROWS, None)])
def test_values_may_be_the_beginnings_of_keys(
    rows: tuple[tuple[int, int], ...], window: int | None, fill: float, widens: bool
) -> None:
    """Latent attention: one array per layer, which all heads share."""
    case = Case(rows=rows, window=window, kv_heads=1, value_dim=10, widens=widens)
    arrays = Arrays.drawn(case)
    arrays = dataclasses.replace(arrays, values=arrays.keys[..., : case.value_dim])
    output = paged(case, arrays, fill=fill, is_latent=True)
    np.testing.assert_allclose(output, dense(case, arrays), atol=TOLERANCE)


BITWISE = [
    Case(),
    Case(rows=DECODE_ROWS, has_sinks=True),
    Case(rows=DECODE_ROWS, widens=True, block_len=64),
    Case(window=9, has_images=True),
    Case(window=9, widens=True, soft_cap=2.0),
]


@pytest.mark.parametrize("case", BITWISE, ids=repr)
@pytest.mark.parametrize("fill", [np.nan, np.inf, -1e30])
def test_what_an_old_owner_left_changes_no_bit(case: Case, fill: float) -> None:
    """Free pages and the unwritten ends of pages may hold anything."""
    arrays = Arrays.drawn(case)
    np.testing.assert_array_equal(paged(case, arrays, fill=fill), paged(case, arrays, fill=0.0))


@pytest.mark.parametrize("case", BITWISE, ids=repr)
def test_tokens_that_are_not_written_get_zeros(case: Case) -> None:
    output = paged(case, Arrays.drawn(case))
    is_padding = case.positions() == MAX_MODEL_LEN
    assert is_padding.any()
    assert not output[is_padding].any()
    assert output[~is_padding].any(axis=(1, 2)).all()


@pytest.mark.parametrize("case", BITWISE, ids=repr)
def test_a_row_is_the_same_whatever_the_others_need(case: Case) -> None:
    """A longer row makes the loop longer for all; its blocks must not touch the others."""
    row, case = 2, dataclasses.replace(case, has_images=False)
    arrays = Arrays.drawn(case)
    alone = tuple(pair if place == row else (0, 0) for place, pair in enumerate(case.rows))
    # The padded length stays the same, so both run as one program.
    alone = (*alone[:-1], (0, case.length))
    output = paged(dataclasses.replace(case, rows=alone), arrays)
    np.testing.assert_array_equal(output[row], paged(case, arrays)[row])


def test_pages_behind_a_window_need_not_exist() -> None:
    case = Case(window=9, rows=((40, 20), (63, 1), (0, 5)))
    arrays = Arrays.drawn(case)
    tables, _ = page_tables(case)
    passed = tables.copy()
    for row, (start, _) in enumerate(case.rows):
        passed[row, : max(start - 9 + 1, 0) // case.page_size] = NO_PAGE
    assert (passed == NO_PAGE).sum() > (tables == NO_PAGE).sum()
    np.testing.assert_array_equal(paged(case, arrays, tables=passed), paged(case, arrays))


@pytest.mark.parametrize("rows", [ROWS, DECODE_ROWS], ids=["prefill", "decode"])
@pytest.mark.parametrize("kv_head", range(4))
def test_one_of_the_heads_in_a_page_can_be_used(kv_head: int, rows: tuple[tuple[int, int], ...]) -> None:
    """With more tp shards than KV heads, each device holds all heads and uses one."""
    case = Case(kv_heads=4, rows=rows, widens=True)
    arrays = Arrays.drawn(case)
    of_one = dataclasses.replace(
        arrays, query=np.repeat(arrays.query[:, :, kv_head : kv_head + 1], HEADS, axis=2)
    )
    output = paged(case, of_one, kv_head=kv_head)
    expected = dense(case, arrays)[:, :, kv_head]
    for head in range(HEADS):
        np.testing.assert_allclose(output[:, :, head], expected, atol=TOLERANCE)


def test_bfloat16_sums_in_float32() -> None:
    case = Case(block_len=8)
    arrays = Arrays.drawn(case)
    rounded = Arrays(
        *(np.asarray(jnp.asarray(a, jnp.bfloat16).astype(jnp.float32)) for a in dataclasses.astuple(arrays))
    )
    tables, num_pages = page_tables(case)
    k, v = (jnp.asarray(pool, jnp.bfloat16) for pool in pools(case, rounded, tables, num_pages))
    run = program(dataclasses.replace(case, rows=()), case.kv_heads)
    query = jnp.asarray(rounded.query, jnp.bfloat16)
    output = run(query, k, v, tables, case.positions(), None, None, None)
    assert output.dtype == jnp.bfloat16
    # Half a step of bfloat16 near 3 for the result, and the same again for the rounded probabilities.
    np.testing.assert_allclose(output.astype(jnp.float32), dense(case, rounded), atol=2e-2)


@pytest.mark.parametrize("page_size", [1, 8, 32])
@pytest.mark.parametrize("rows", [ROWS, DECODE_ROWS], ids=["prefill", "decode"])
def test_rows_are_written_where_the_table_says(page_size: int, rows: tuple[tuple[int, int], ...]) -> None:
    case = Case(page_size=page_size, rows=rows)
    tables, num_pages = page_tables(case)
    draw = np.random.default_rng(0)
    old = draw.normal(size=(num_pages, page_size, 32)).astype(np.float32)
    new = draw.normal(size=(len(rows), case.length, 32)).astype(np.float32)
    expected = old.copy()
    for row, (start, length) in enumerate(rows):
        for step in range(length):
            page = tables[row, (start + step) // page_size]
            expected[page, (start + step) % page_size] = new[row, step]
    pool = write(jnp.asarray(old), new, tables, case.positions(), max_model_len=MAX_MODEL_LEN)
    np.testing.assert_array_equal(pool, expected)


def test_nothing_is_written_without_a_page() -> None:
    old = np.ones((4, 8, 32), np.float32)
    tables = np.full((2, 13), NO_PAGE, np.int32)
    positions = np.array([[0, 9, 99], [50, MAX_MODEL_LEN, MAX_MODEL_LEN]], np.int32)
    new = np.zeros((2, 3, 32), np.float32)
    pool = write(jnp.asarray(old), new, tables, positions, max_model_len=MAX_MODEL_LEN)
    np.testing.assert_array_equal(pool, old)


def test_pages_hold_the_type_of_the_pool() -> None:
    pool = jnp.zeros((2, 4, 8), jnp.bfloat16)
    table, positions = np.array([[1]], np.int32), np.array([[2]], np.int32)
    written = write(pool, np.full((1, 1, 8), 1.001, np.float32), table, positions, max_model_len=4)
    assert written.dtype == jnp.bfloat16
    assert written[1, 2].tolist() == [1.0] * 8
