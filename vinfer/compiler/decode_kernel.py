"""Attention of one token per row over pages, as one Triton kernel: decoding on NVIDIA GPUs.

XLA gathers a block of pages into memory before it multiplies, so each key and value is read, written and
read again. The kernel reads them once. It has the results of `paged_attention.attend`, and takes the same
pools and tables. Exported with the program; the GPU's compiler sees it when a bundle is loaded.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from vinfer.bundle.kv_pages import addressable_pages
from vinfer.compiler.paged_attention import MASKED, Visible

CUSTOM_CALL = "__gpu$xla.gpu.triton"
"""What the kernel is in StableHLO; `jax.export` wants to be told that this is meant."""
_NUM_INSTANCES = 512
"""A row is split until so many instances run: a few for each of the 132 multiprocessors of an H100."""
_TILE_BYTES = 16 << 10
"""Keys, or values, that an instance holds at once. Two of each fit every GPU since 2018."""
_MIN_TILE = 16
"""Triton multiplies no smaller matrices."""


def supports(query: jax.Array, k: jax.Array, seen: Visible) -> bool:
    """Return whether the kernel can do what `paged_attention.attend` is asked for.

    This is the only place that decides between the two, when a program is exported. The kernel is for one
    token per row, without images that are seen both ways. Soft caps, sinks, windows, grouped queries, heads
    of any size and values of other sizes are supported. Pages must be whole tiles; those of GPUs are.
    """
    return query.shape[1] == 1 and seen.spans is None and k.shape[1] % _MIN_TILE == 0


def tile_len(page_size: int, dim: int, item_bytes: int) -> int:
    """Return how many positions an instance reads at once: a part of a page, so that one page is read."""
    length = math.gcd(page_size, 1 << 30)
    while length > _MIN_TILE and length * _lanes(dim) * item_bytes > _TILE_BYTES:
        length //= 2
    return length


def num_splits(num_rows: int, num_kv_heads: int, pages_of_row: int) -> int:
    """Return into how many parts each row is split.

    Depends on the shape of the program only, and a row's parts on its own positions only. So a row's bits do
    not depend on other rows.
    """
    return max(min(_NUM_INSTANCES // (num_rows * num_kv_heads), pages_of_row), 1)


def attend(
    query: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array,
    seen: Visible,
    *,
    num_kv_heads: int,
    scale: float,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    first_kv_head: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attend as `paged_attention.attend` does, for what `supports` accepts.

    Source: Flash-Decoding (Dao et al., 2023) for splitting rows.

    Args:
        query: [rows, 1, heads, head_dim].
        interpret: run on a CPU, for tests.

    Returns:
        [rows, 1, heads, value_dim], in the query's dtype.
    """
    rows, _, heads, dim = query.shape
    value_dim = v.shape[2] // (k.shape[2] // dim)
    group = heads // num_kv_heads
    splits = num_splits(rows, num_kv_heads, table.shape[1])
    kernel = functools.partial(
        paged_decode,
        dim=dim,
        value_dim=value_dim,
        group=group,
        tile=tile_len(k.shape[1], max(dim, value_dim), k.dtype.itemsize),
        scale=scale,
        soft_cap=soft_cap,
    )
    per_head = jax.ShapeDtypeStruct((rows, splits, heads), jnp.float32)
    top, total, acc = pl.pallas_call(
        kernel,
        grid=(rows, num_kv_heads, splits),
        in_specs=[pl.BlockSpec(), _whole(k), _whole(v), *[pl.BlockSpec()] * 4],
        out_shape=(
            per_head,
            per_head,
            jax.ShapeDtypeStruct((rows, splits, heads, value_dim), jnp.float32),
        ),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
    )(
        query[:, 0],
        k,
        v,
        table,
        seen.first[:, 0],
        seen.end[:, 0],
        jnp.zeros(1, jnp.int32) if first_kv_head is None else first_kv_head.astype(jnp.int32)[None],
    )
    return _joined(top, total, acc, sinks)[:, None].astype(query.dtype)


def paged_decode(
    query: Any,
    k: Any,
    v: Any,
    table: Any,
    first: Any,
    end: Any,
    first_kv_head: Any,
    top_out: Any,
    total_out: Any,
    acc_out: Any,
    *,
    dim: int,
    value_dim: int,
    group: int,
    tile: int,
    scale: float,
    soft_cap: float | None,
) -> None:
    """Attend for the queries of one KV head over one part of one row: the body of the kernel.

    Its name is that of the call in a compiled program. Arguments are references to whole arrays: query
    [rows, heads, dim], first and end int32 [rows], first_kv_head int32 [1], top and total float32
    [rows, splits, heads], acc float32 [rows, splits, heads, value_dim].
    """
    row, head, split = (pl.program_id(axis) for axis in range(3))
    page_size, precision = k.shape[1], _precision(k.dtype)
    row_first, row_end = first[row], end[row]
    first_tile = lax.div(row_first, tile)
    tiles_of_part = pl.cdiv(pl.cdiv(row_end, tile) - first_tile, pl.num_programs(2))
    part_first = first_tile + split * tiles_of_part
    part_end = jnp.minimum(part_first + tiles_of_part, pl.cdiv(row_end, tile))

    # Powers of two, which Triton wants; what is too much is masked.
    lines, lanes, value_lanes = (
        jnp.arange(size) for size in (max(_lanes(group), _MIN_TILE), _lanes(dim), _lanes(value_dim))
    )
    own = head * group + lines
    of_group = (lines < group)[:, None]
    queries = triton.load(
        query.at[row, own[:, None], lanes[None, :]], mask=of_group & (lanes < dim)[None, :], other=0.0
    )
    pool_head = first_kv_head[0] + head

    def load(pool: Any, page: Any, places: Any, is_seen: Any, lanes: Any, dim: int) -> Any:
        # Only what the row sees: other rows of a page may hold anything, also NaN.
        return triton.load(
            pool.at[page, places[:, None], (pool_head * dim + lanes)[None, :]],
            mask=is_seen[:, None] & (lanes < dim)[None, :],
            other=0.0,
        )

    def one_tile(index: Any, carry: Any) -> Any:
        top, total, acc = carry
        positions = index * tile + jnp.arange(tile)
        is_seen = (positions >= row_first) & (positions < row_end)
        page = table[row, lax.div(index * tile, page_size)]
        places = lax.rem(index * tile, page_size) + jnp.arange(tile)
        keys = load(k, page, places, is_seen, lanes, dim)
        scores = pl.dot(queries, keys, trans_b=True, precision=precision) * scale
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(is_seen[None, :], scores, MASKED)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        probs = jnp.where(is_seen[None, :], jnp.exp(scores - new_top[:, None]), 0.0)
        decay = jnp.exp(top - new_top)
        values = load(v, page, places, is_seen, value_lanes, value_dim)
        weighted = pl.dot(probs.astype(values.dtype), values, precision=precision)
        return new_top, total * decay + jnp.sum(probs, axis=1), acc * decay[:, None] + weighted

    start = (
        jnp.full(lines.shape, MASKED, jnp.float32),
        jnp.zeros(lines.shape, jnp.float32),
        jnp.zeros((*lines.shape, *value_lanes.shape), jnp.float32),
    )
    top, total, acc = lax.fori_loop(part_first, part_end, one_tile, start)
    triton.store(top_out.at[row, split, own], top, mask=lines < group)
    triton.store(total_out.at[row, split, own], total, mask=lines < group)
    triton.store(
        acc_out.at[row, split, own[:, None], value_lanes[None, :]],
        acc,
        mask=of_group & (value_lanes < value_dim)[None, :],
    )


def _joined(top: jax.Array, total: jax.Array, acc: jax.Array, sinks: jax.Array | None) -> jax.Array:
    """Return float32 [rows, heads, value_dim] of all parts; a row that sees nothing has a total of 0."""
    highest = jnp.max(top, axis=1)
    if sinks is not None:
        highest = jnp.maximum(highest, sinks.astype(jnp.float32))
    share = jnp.exp(top - highest[:, None])
    whole = jnp.sum(total * share, axis=1)
    if sinks is not None:
        whole += jnp.exp(sinks.astype(jnp.float32) - highest)
    return jnp.sum(acc * share[..., None], axis=1) / jnp.maximum(whole, 1e-30)[..., None]


def _whole(pool: jax.Array) -> Any:
    """Describe a pool as one block; while a program is exported, its number of pages is a symbol."""
    num_pages, *of_page = pool.shape
    if not isinstance(num_pages, int):
        num_pages = addressable_pages("cuda", math.prod(of_page) * pool.dtype.itemsize)
    return pl.BlockSpec((pl.Element(num_pages), *of_page), lambda *_: (0, 0, 0))


def _lanes(size: int) -> int:
    return max(1 << (size - 1).bit_length(), _MIN_TILE)


def _precision(dtype: Any) -> lax.Precision | None:
    """Return how to multiply: the default would round float32 to ten bits."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None
