"""Writes keys and values into pages, and attends over pages, block by block with a running softmax.

A pool is `[pages, page_size, kv_heads * head_dim]`. It has no axis of heads, so its last axis fills whole
lanes and no compiler wants another order. A page table says which page holds which positions of a row.
Plain functions over one device's arrays; `kv_cache` splits them over a mesh. Knows no model and no EasyDeL.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

NO_PAGE = 2**31 - 1
"""A page table's entry for positions that have no page: nothing is written there, and nothing seen."""
MASKED = -1e30
"""Score of what a token does not see."""


@dataclasses.dataclass(frozen=True)
class Visible:
    """Which positions each token sees: `first` <= position < `end`, int32 [rows, length] each.

    Attributes:
        spans: a second range of positions, (first, end), int32 [rows, length] each: the image around a token
            in a model with bidirectional image attention; first >= end for text. None for other models.
    """

    first: jax.Array
    end: jax.Array
    spans: tuple[jax.Array, jax.Array] | None = None

    def of_rows(self) -> tuple[jax.Array, jax.Array]:
        """Return the range that covers what all tokens of a row see, int32 [rows] each; (0, 0) for none."""
        first, end = self.first, self.end
        if self.spans is not None:
            # A token that is not written sees nothing, nor does its span.
            has_span = (self.spans[0] < self.spans[1]) & (end > 0)
            first = jnp.where(has_span, jnp.minimum(first, self.spans[0]), first)
            end = jnp.where(has_span, jnp.maximum(end, self.spans[1]), end)
        last = jnp.max(end, axis=1)
        sees_something = self.end > 0
        return jnp.min(jnp.where(sees_something, first, last[:, None]), axis=1), last

    def mask(self, positions: jax.Array) -> jax.Array:
        """Return bool [rows, length, block]: which positions, int32 [rows, block], each token sees."""
        places = positions[:, None, :]
        mask = (places >= self.first[:, :, None]) & (places < self.end[:, :, None])
        if self.spans is None:
            return mask
        first, end = (limit[:, :, None] for limit in self.spans)
        return mask | ((places >= first) & (places < end))


def visible(
    positions: jax.Array,
    *,
    max_model_len: int,
    window: int | None,
    spans: tuple[jax.Array, jax.Array] | None = None,
) -> Visible:
    """Return what tokens at some positions see: themselves and what comes before, within a window.

    Positions in `spans` are visible despite any window, as in transformers (`or_mask_function`).

    Args:
        positions: int32 [rows, length]; `max_model_len` for tokens that are not written, which see nothing.
        window: how many positions a token sees, including its own; None for all.
    """
    is_written = positions < max_model_len
    end = jnp.where(is_written, positions + 1, 0)
    first = jnp.zeros_like(end) if window is None else jnp.maximum(end - window, 0)
    return Visible(first, end, spans)


def write(
    pool: jax.Array, new: jax.Array, table: jax.Array, positions: jax.Array, *, max_model_len: int
) -> jax.Array:
    """Write one row per token into its page.

    Args:
        pool: [pages, page_size, width].
        new: [rows, length, width].
        table: int32 [rows, pages of a row].
        positions: int32 [rows, length]; `max_model_len` for tokens that are not written.
    """
    page_size = pool.shape[1]
    pages = jnp.take_along_axis(table, positions // page_size, axis=1, mode="clip")
    pages = jnp.where(positions < max_model_len, pages, NO_PAGE)
    return pool.at[pages, positions % page_size].set(new.astype(pool.dtype), mode="drop")


def attend(
    query: jax.Array,
    k: jax.Array,
    v: jax.Array | None,
    table: jax.Array,
    seen: Visible,
    *,
    num_kv_heads: int,
    scale: float,
    block_len: int,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    first_kv_head: jax.Array | None = None,
    widens: bool = False,
    latent_value_dim: int | None = None,
) -> jax.Array:
    """Attend over the pages of each row, block by block, with a running softmax in float32.

    Each row begins at the block of its own first visible position, so a row's result is the same, bit by bit,
    whatever other rows need. The loop ends with the longest row.

    Source: FlashAttention (Dao et al., 2022) for the running softmax, without its tiling.

    Args:
        query: [rows, length, heads, head_dim].
        k, v: pools [pages, page_size, pool heads * their head_dim]; v is None for a latent.
        table: int32 [rows, pages of a row].
        num_kv_heads: KV heads that the queries use.
        block_len: positions that one turn of the loop reads; a multiple of the page size.
        soft_cap: scores become `soft_cap * tanh(score / soft_cap)`.
        sinks: [heads], a score per head that takes part in the softmax and has no value.
        first_kv_head: int32, where the pool has more heads than the queries use: the first one used.
        widens: multiply pages as they lie, with queries that are zero outside their own KV head. That is
            `num_kv_heads` times the arithmetic and no transpose: decoding waits for memory. Of 30 layers with
            3 KV heads, it takes half of the time on a CPU, and a sixth for one row of 2,000 tokens.
        latent_value_dim: without v, the values are so many first elements of a key; there is one KV head.

    Returns:
        [rows, length, heads, value_dim], in the query's dtype.
    """
    rows, length, heads, dim = query.shape
    page_size = k.shape[1]
    pages_per_block = block_len // page_size
    row_first, row_end = seen.of_rows()
    first_block = row_first // block_len
    num_blocks = jnp.max(jnp.where(row_end > 0, -(-row_end // block_len) - first_block, 0))
    layout = _Layout(num_kv_heads, heads // num_kv_heads, dim, widens and first_kv_head is None)
    queries = layout.queries(query)
    if v is None:
        assert latent_value_dim is not None
        assert k.shape[2] == dim
        value_dim = latent_value_dim
    else:
        value_dim = v.shape[2] // (k.shape[2] // dim)

    def gather(pool: jax.Array, pages: jax.Array) -> jax.Array:
        return pool.at[pages].get(mode="clip").reshape(rows, block_len, pool.shape[2])

    def one_block(index: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, acc = carry
        block = first_block + index
        places = block[:, None] * pages_per_block + jnp.arange(pages_per_block, dtype=jnp.int32)
        pages = jnp.take_along_axis(table, places, axis=1, mode="fill", fill_value=NO_PAGE)
        positions = block[:, None] * block_len + jnp.arange(block_len, dtype=jnp.int32)
        # Rows of a page that the row has not written may hold anything of an earlier owner, also NaN.
        is_own = (positions >= row_first[:, None]) & (positions < row_end[:, None])
        key_rows = gather(k, pages)
        keys = layout.of_block(key_rows, dim, first_kv_head)
        value_rows = key_rows[:, :, :value_dim] if v is None else gather(v, pages)
        values = jnp.where(is_own[:, :, None], value_rows, 0)
        values = layout.of_block(values, value_dim, first_kv_head)
        scores = layout.scores(queries, keys) * scale
        if soft_cap is not None:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        mask = layout.over_heads(seen.mask(positions))
        scores = jnp.where(mask, scores, MASKED)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
        probs = jnp.where(mask, jnp.exp(scores - new_top[..., None]), 0.0)
        decay = jnp.exp(top - new_top)
        weighted = layout.weighted(probs.astype(values.dtype), values)
        return new_top, total * decay + jnp.sum(probs, axis=-1), acc * decay[..., None] + weighted

    shape = layout.shape(rows, length)
    acc = jnp.zeros((*shape, layout.num_value_lanes(value_dim)), jnp.float32)
    if sinks is None:
        start = (jnp.full(shape, MASKED, jnp.float32), jnp.zeros(shape, jnp.float32), acc)
    else:
        start = (layout.of_heads(sinks.astype(jnp.float32), shape), jnp.ones(shape, jnp.float32), acc)
    _, total, acc = lax.fori_loop(0, num_blocks, one_block, start)
    # A row that sees nothing has a total of 0.
    return layout.output(acc / jnp.maximum(total, 1e-30)[..., None], value_dim).astype(query.dtype)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How queries, scores and outputs are arranged: grouped by KV head, or widened to rows of a page."""

    num_kv_heads: int
    group: int
    dim: int
    widens: bool

    def shape(self, rows: int, length: int) -> tuple[int, ...]:
        """Return the shape of the running maximum: one entry per row, token and head."""
        if self.widens:
            return (rows, length * self.num_kv_heads * self.group)
        return (rows, self.num_kv_heads, self.group * length)

    def num_value_lanes(self, value_dim: int) -> int:
        return value_dim * (self.num_kv_heads if self.widens else 1)

    def queries(self, query: jax.Array) -> jax.Array:
        """Arrange queries [rows, length, heads, dim]."""
        rows, length, heads, dim = query.shape
        if not self.widens:
            grouped = query.reshape(rows, length, self.num_kv_heads, self.group, dim)
            return grouped.transpose(0, 2, 3, 1, 4).reshape(rows, self.num_kv_heads, self.group * length, dim)
        wide = query[:, :, :, None, :] * self._own(query.dtype)[None, None, :, :, None]
        return wide.reshape(rows, length * heads, self.num_kv_heads * dim)

    def _own(self, dtype: jnp.dtype) -> jax.Array:
        """Return [heads, kv_heads]: 1 for each head's own KV head."""
        return jnp.repeat(jnp.eye(self.num_kv_heads, dtype=dtype), self.group, axis=0)

    def of_block(self, block: jax.Array, dim: int, first_kv_head: jax.Array | None) -> jax.Array:
        """Arrange a block [rows, block, pool heads * dim] of keys or values."""
        if self.widens:
            return block
        rows, block_len, width = block.shape
        by_head = block.reshape(rows, block_len, width // dim, dim)
        if first_kv_head is None:
            return by_head
        return lax.dynamic_slice_in_dim(by_head, first_kv_head, self.num_kv_heads, axis=2)

    def scores(self, queries: jax.Array, keys: jax.Array) -> jax.Array:
        """Return float32 [..., block]."""
        terms = "rqw,rbw->rqb" if self.widens else "rhqd,rbhd->rhqb"
        return jnp.einsum(terms, queries, keys, preferred_element_type=jnp.float32)

    def weighted(self, probs: jax.Array, values: jax.Array) -> jax.Array:
        """Return float32 [..., value lanes]."""
        terms = "rqb,rbw->rqw" if self.widens else "rhqb,rbhd->rhqd"
        return jnp.einsum(terms, probs, values, preferred_element_type=jnp.float32)

    def over_heads(self, mask: jax.Array) -> jax.Array:
        """Repeat a mask [rows, length, block] for each head."""
        rows, length, block_len = mask.shape
        if self.widens:
            return jnp.repeat(mask, self.num_kv_heads * self.group, axis=1)
        wide = jnp.broadcast_to(mask[:, None, :, :], (rows, self.group, length, block_len))
        return wide.reshape(rows, 1, self.group * length, block_len)

    def of_heads(self, per_head: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Spread one number per head, [heads], over the rows and tokens of `shape`."""
        if self.widens:
            return jnp.broadcast_to(jnp.tile(per_head, shape[1] // per_head.shape[0]), shape)
        length = shape[2] // self.group
        by_token = jnp.repeat(per_head.reshape(self.num_kv_heads, self.group), length, axis=1)
        return jnp.broadcast_to(by_token, shape)

    def output(self, acc: jax.Array, value_dim: int) -> jax.Array:
        """Return [rows, length, heads, value_dim]."""
        rows = acc.shape[0]
        heads = self.num_kv_heads * self.group
        if self.widens:
            wide = acc.reshape(rows, -1, heads, self.num_kv_heads, value_dim)
            return jnp.einsum("rlhkd,hk->rlhd", wide, self._own(acc.dtype))
        grouped = acc.reshape(rows, self.num_kv_heads, self.group, -1, value_dim)
        return grouped.transpose(0, 3, 1, 2, 4).reshape(rows, -1, heads, value_dim)
