"""vinfer's KV cache in pages, with the interface that EasyDeL's attention layers use; and states per slot.

EasyDeL's attention calls one method of a cache view, `concatenate_to_cache`, and reads the attributes `key`,
`starts`, `indexs` and `masking_details`. This view writes the new rows into its layer's pages. The layer's
attention then calls `attend` (`easydel.attention`). It knows nothing of tokens, sampling or EasyDeL's own
caches, and does not import EasyDeL.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from vinfer.compiler import cpu_attention, decode_kernel, paged_attention
from vinfer.compiler.paged_attention import NO_PAGE

MAX_WIDENED_QUERIES = 64
"""Queries of a row (tokens times heads) that are widened; decoding's always are. Beyond, on a CPU, the
additional arithmetic takes longer than the transposes that it saves."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which pages the rows of a forward pass have, and where their tokens go.

    Attributes:
        page_tables: int32 [shards, groups, rows of a shard, pages of a row]: the page of each stretch of
            `page_size` positions, for each group of layers, numbered within a dp shard's part of the pool;
            NO_PAGE where there is none.
        positions: int32 [rows, length], the position of every token in its sequence; `max_model_len` for
            tokens that are not written (padding, idle slots).
        max_model_len: the longest sequence.
        is_split: whether the rows are split over dp; otherwise every shard sees all rows, and has pages for
            its own rows only.
        spans: first and end, int32 [rows, length] each: extra positions that a token sees, for whole images
            in a model with bidirectional image attention (`ImageFeatures.spans`). None if there are none.
        rope_positions: int32 [rows, 3, length], the time, row and column by which tokens rotate. None if
            they rotate by their position.
        slots: int32 [rows], the slot of each row; `num_slots` for padding. None in embed programs.
    """

    page_tables: jax.Array
    positions: jax.Array
    max_model_len: int
    is_split: bool = False
    rope_positions: jax.Array | None = None
    spans: tuple[jax.Array, jax.Array] | None = None
    slots: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class LayerCache:
    """What is static about one layer's cache.

    Attributes:
        group: index of the layer's group in the page tables.
        window: positions that a token sees, including its own; None for all.
        num_kv_heads: KV heads of the model.
        mesh: None on one device.
        block_len: see `paged_attention.attend`.
        kernel: attend with `cpu_attention`, on one CPU device, or `decode_kernel`, where they support that.
            The latter is interpreted on a CPU in tests.
        latent_value_dim: for a layer with one array, whose rows are keys that begin with their values, so
            many elements of them (latent attention, one KV head). None for a layer with k and v.
    """

    group: int
    window: int | None
    num_kv_heads: int
    block_len: int
    mesh: Mesh | None = None
    kernel: Literal["cpu", "gpu", "interpreted"] | None = None
    latent_value_dim: int | None = None

    @property
    def num_arrays(self) -> int:
        return 2 if self.latent_value_dim is None else 1


@dataclasses.dataclass(frozen=True)
class SlotCache:
    """What is static about a layer that keeps arrays [num_slots, ...] instead of pages."""

    num_arrays: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCacheView:
    """One layer's pages. k and v: [pages, page_size, kv_heads * head_dim]; v is None for a latent.

    Each layer's mask comes from here, including its window: EasyDeL's layers apply windows after this
    view, incorrectly in prefill (`_flexible.py::_apply_sliding_window`), so they are told to have none.

    `key` stays None: EasyDeL compares the batch size of a view's `key` with the query's, and ours has pages,
    not rows. `masking_details` is None to keep EasyDeL from applying its own window.
    """

    k: jax.Array
    v: jax.Array | None
    cache: KVCache = dataclasses.field(metadata={"static": True})
    layer: int = dataclasses.field(metadata={"static": True})

    key: ClassVar[None] = None
    starts: ClassVar[None] = None
    indexs: ClassVar[None] = None
    masking_details: ClassVar[None] = None

    @property
    def arrays(self) -> tuple[jax.Array, ...]:
        return (self.k,) if self.v is None else (self.k, self.v)

    @property
    def _static(self) -> LayerCache:
        static = self.cache.layers[self.layer]
        assert isinstance(static, LayerCache)
        return static

    def concatenate_to_cache(
        self, *, key: jax.Array, value: jax.Array, mask_info: Any, **_: Any
    ) -> tuple[jax.Array, jax.Array, Any, KVCacheView, None]:
        """Write new rows; `attend` reads them.

        Args:
            key: [rows, length, kv_heads, head_dim], already rotated.
            value: [rows, length, kv_heads, head_dim]; not written if it is the beginning of `key`.
        """
        static, rows = self._static, self.cache.rows
        split = _Split(static, rows_are_split=rows.is_split)

        def write(
            pools: tuple[jax.Array, ...], new: tuple[jax.Array, ...], tables: jax.Array, at: jax.Array
        ) -> tuple[jax.Array, ...]:
            table = tables[0, static.group]
            in_rows = [each.reshape(*each.shape[:2], -1) for each in new]
            write_rows = functools.partial(
                paged_attention.write, table=table, positions=at, max_model_len=rows.max_model_len
            )
            return tuple(write_rows(pool, each) for pool, each in zip(pools, in_rows, strict=True))

        written = split.over_mesh(
            write, (split.pool, split.of_kv_heads, split.tables, split.of_rows), split.pool
        )(self.arrays, (key, value)[: static.num_arrays], rows.page_tables, rows.positions)
        view = dataclasses.replace(self, k=written[0], v=written[1] if len(written) > 1 else None)
        # Assigned here because EasyDeL's Gemma 2 drops the view that its layers return.
        self.cache[self.layer] = view
        return key, value, mask_info, view, None

    def attend(
        self, query: jax.Array, *, scale: float, soft_cap: float | None, sinks: jax.Array | None
    ) -> jax.Array:
        """Return [rows, length, heads, value_dim] for queries [rows, length, heads, head_dim].

        Args:
            scale, soft_cap, sinks: see `paged_attention.attend`.
        """
        static, rows = self._static, self.cache.rows
        split = _Split(static, rows_are_split=rows.is_split)
        extra: dict[str, jax.Array] = {}
        specs: dict[str, PartitionSpec] = {}
        if sinks is not None:
            extra["sinks"], specs["sinks"] = sinks, PartitionSpec(split.heads)
        if rows.spans is not None:
            extra["first"], extra["end"] = rows.spans
            specs["first"] = specs["end"] = split.of_rows

        def attend(
            query: jax.Array,
            pools: tuple[jax.Array, ...],
            tables: jax.Array,
            positions: jax.Array,
            extra: dict[str, jax.Array],
        ) -> jax.Array:
            k, v = pools if len(pools) == 2 else (pools[0], None)
            table = tables[0, static.group]
            if split.has_foreign_rows:
                is_own = jnp.any(table != NO_PAGE, axis=1)
                positions = jnp.where(is_own[:, None], positions, rows.max_model_len)
            seen = paged_attention.visible(
                positions,
                max_model_len=rows.max_model_len,
                window=static.window,
                spans=(extra["first"], extra["end"]) if rows.spans is not None else None,
            )
            output = _way_to_attend(static, query, k, v, seen, soft_cap)(
                query,
                k,
                v,
                table,
                seen,
                num_kv_heads=split.num_kv_heads_here,
                scale=scale,
                soft_cap=soft_cap,
                sinks=extra.get("sinks"),
                first_kv_head=split.first_kv_head(),
            )
            # Only one shard has a row's pages; the others have computed zeros.
            return lax.psum(output, "dp") if split.has_foreign_rows else output

        of_query = PartitionSpec(split.rows_axis, None, split.heads, None)
        return split.over_mesh(
            attend,
            (of_query, split.pool, split.tables, split.of_rows, specs),
            of_query,
        )(query, self.arrays, rows.page_tables, rows.positions, extra)


def _way_to_attend(
    static: LayerCache,
    query: jax.Array,
    k: jax.Array,
    v: jax.Array | None,
    seen: paged_attention.Visible,
    soft_cap: float | None,
) -> Callable[..., jax.Array]:
    """Return the function that attends: a kernel, where there is one that can, or plain XLA."""
    if v is not None and static.kernel == "cpu" and cpu_attention.supports(query, k, v, seen, soft_cap):
        return cpu_attention.attend
    is_for_gpu = static.kernel in ("gpu", "interpreted")
    if v is not None and is_for_gpu and decode_kernel.supports(query, k, seen):
        return functools.partial(decode_kernel.attend, interpret=static.kernel == "interpreted")
    return functools.partial(
        paged_attention.attend,
        block_len=static.block_len,
        latent_value_dim=static.latent_value_dim,
        widens=query.shape[1] == 1 or math.prod(query.shape[1:3]) <= MAX_WIDENED_QUERIES,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotView:
    """What one layer keeps for each slot: arrays [num_slots, ...].

    A pass reads the rows' entries once, and writes what they are after its tokens.
    """

    arrays: tuple[jax.Array, ...]
    cache: KVCache = dataclasses.field(metadata={"static": True})
    layer: int = dataclasses.field(metadata={"static": True})

    def read(self) -> tuple[jax.Array, ...]:
        """Return the rows' entries, [rows, ...] each; zeros for a row whose request begins."""
        begins = self.cache.rows.positions[:, 0] == 0

        def of_rows(array: jax.Array) -> jax.Array:
            found = array.at[self._slots].get(mode="clip")
            return jnp.where(begins.reshape(-1, *[1] * (found.ndim - 1)), 0, found)

        return tuple(map(of_rows, self.arrays))

    def write(self, *new: jax.Array) -> None:
        """Replace the rows' entries with [rows, ...] each; those of rows without a token stay.

        Tokens after the last one that is written must not have changed them.
        """
        has_token = self.cache.rows.positions[:, 0] < self.cache.rows.max_model_len
        self.cache[self.layer] = dataclasses.replace(
            self,
            arrays=tuple(
                array.at[jnp.where(has_token, self._slots, array.shape[0])].set(rows, mode="drop")
                for array, rows in zip(self.arrays, new, strict=True)
            ),
        )

    @property
    def _slots(self) -> jax.Array:
        slots = self.cache.rows.slots
        assert slots is not None
        return slots


class KVCache:
    """The views of all layers, which EasyDeL's models index and assign.

    Args:
        arrays: those of every layer, in order.
    """

    def __init__(
        self, arrays: Sequence[jax.Array], rows: Rows, layers: Sequence[LayerCache | SlotCache]
    ) -> None:
        self.rows = rows
        self.layers = tuple(layers)
        self.views: list[KVCacheView | SlotView] = []
        for layer, (static, own) in enumerate(_by_layer(arrays, layers)):
            if isinstance(static, SlotCache):
                self.views.append(SlotView(own, self, layer))
            else:
                self.views.append(KVCacheView(own[0], own[1] if len(own) > 1 else None, self, layer))

    def __setitem__(self, layer: int, view: KVCacheView | SlotView) -> None:
        self.views[layer] = view

    def __getitem__(self, layer: int) -> KVCacheView | SlotView:
        return self.views[layer]

    def __len__(self) -> int:
        return len(self.views)

    def arrays(self) -> tuple[jax.Array, ...]:
        """Return the arrays of all layers, in order."""
        return tuple(array for view in self.views for array in view.arrays)


def _by_layer(
    arrays: Sequence[jax.Array], layers: Sequence[LayerCache | SlotCache]
) -> Iterator[tuple[LayerCache | SlotCache, tuple[jax.Array, ...]]]:
    """Yield each layer and its arrays."""
    start = 0
    for layer in layers:
        yield layer, tuple(arrays[start : start + layer.num_arrays])
        start += layer.num_arrays
    assert start == len(arrays), (start, len(arrays))


def copy_pages(
    kv: Sequence[jax.Array], sources: jax.Array, targets: jax.Array, layers: Sequence[LayerCache | SlotCache]
) -> tuple[jax.Array, ...]:
    """Copy one page of every group within each dp shard.

    Args:
        kv: the arrays of every layer, in order.
        sources, targets: int32 [shards, groups]; a target of NO_PAGE copies nothing.
    """
    copied: list[jax.Array] = []
    for layer, pool in ((layer, array) for layer, own in _by_layer(kv, layers) for array in own):
        if isinstance(layer, SlotCache):
            copied.append(pool)
            continue
        split = _Split(layer)

        def copy(
            pool: jax.Array, sources: jax.Array, targets: jax.Array, group: int = layer.group
        ) -> jax.Array:
            page = pool.at[sources[:, group]].get(mode="clip")
            return pool.at[targets[:, group]].set(page, mode="drop")

        on_mesh = split.over_mesh(copy, (split.pool, split.tables, split.tables), split.pool)
        copied.append(on_mesh(pool, sources, targets))
    return tuple(copied)


class _Split:
    """How one layer's arrays are split over a mesh: pools and rows over dp, heads over tp."""

    def __init__(self, layer: LayerCache, *, rows_are_split: bool = False) -> None:
        sizes = {} if layer.mesh is None else dict(layer.mesh.shape)
        self._mesh = layer.mesh
        self._tp = sizes.get("tp", 1)
        self._num_kv_heads = layer.num_kv_heads
        self._splits_pool = layer.num_kv_heads % self._tp == 0
        self.heads = "tp" if self._tp > 1 else None
        self.rows_axis = "dp" if rows_are_split else None
        self.has_foreign_rows = sizes.get("dp", 1) > 1 and not rows_are_split
        self.pool = PartitionSpec("dp", None, "tp" if self._splits_pool else None)
        self.tables = PartitionSpec("dp")
        self.of_rows = PartitionSpec(self.rows_axis)
        self.of_kv_heads = PartitionSpec(self.rows_axis, None, "tp" if self._splits_pool else None, None)

    @property
    def num_kv_heads_here(self) -> int:
        """KV heads that one device's queries use."""
        return self._num_kv_heads // self._tp if self._splits_pool else 1

    def first_kv_head(self) -> jax.Array | None:
        """Return the KV head of a device's queries, where every device holds all heads of the pool."""
        if self._splits_pool:
            return None
        return lax.axis_index("tp") * self._num_kv_heads // self._tp

    def over_mesh(self, function: Any, arguments: tuple[Any, ...], results: Any) -> Any:
        """Return a function that runs on each device with its own part of the arrays."""
        if self._mesh is None:
            return function
        return functools.partial(jax.shard_map, mesh=self._mesh, check_vma=False)(
            function, in_specs=arguments, out_specs=results
        )
