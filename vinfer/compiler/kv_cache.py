"""vinfer's KV cache, with the interface that EasyDeL's attention layers use.

EasyDeL's attention calls one method of a cache view, `concatenate_to_cache`, and reads the attributes
`key`, `starts`, `indexs` and `masking_details`. This view scatters the new rows into a dense cache
`[num_slots, max_model_len, kv_heads, head_dim]` and returns the first `kv_length` rows of the slots that
take part. It knows nothing of tokens, sampling or EasyDeL's own caches, and does not import EasyDeL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which slots take part in a forward pass, and where their tokens go.

    Attributes:
        slots: int32 [rows]; a padded row names slot `num_slots`, which does not exist. None if row i is
            slot i: then the cache is read in place, without a gather and without moving a cache that is
            split over dp.
        positions: int32 [rows, length], the position of every token in its slot; `max_model_len` for
            tokens that are not written (padding, idle slots).
        kv_length: rows of the cache that attention reads.
        spans: first and end, int32 [rows, length] each: extra positions that a token sees, for whole images
            in a model with bidirectional image attention (`ImageFeatures.spans`). None if there are none.
        rope_positions: int32 [rows, 3, length], the time, row and column by which tokens rotate. None if
            they rotate by their position.
    """

    slots: jax.Array | None
    positions: jax.Array
    kv_length: int
    rope_positions: jax.Array | None = None
    spans: tuple[jax.Array, jax.Array] | None = None

    def attention_mask(self, window: int | None) -> jax.Array:
        """Return bool [rows, 1, length, kv_length]: a token sees its own position and those before it.

        Positions in `spans` are visible despite any window, as in transformers (`or_mask_function`).

        Args:
            window: how many positions a token sees, including its own; None for all.
        """
        kv_positions = jnp.arange(self.kv_length, dtype=jnp.int32)[None, None, None, :]
        positions = self.positions[:, None, :, None]
        mask = kv_positions <= positions
        if window is not None:
            mask &= kv_positions > positions - window
        if self.spans is None:
            return mask
        first, end = (bound[:, None, :, None] for bound in self.spans)
        return mask | ((kv_positions >= first) & (kv_positions < end))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCacheView:
    """One layer's cache. k and v: [num_slots, max_model_len, kv_heads, head_dim].

    Each layer's mask comes from here, including its window: EasyDeL's layers apply windows after this
    view, incorrectly in prefill (`_flexible.py::_apply_sliding_window`), so they are told to have none.

    `key` stays None: EasyDeL compares the batch size of a view's `key` with the query's, and ours counts
    slots, not rows. `masking_details` is None to keep EasyDeL from applying its own window.
    """

    k: jax.Array
    v: jax.Array
    slots: jax.Array | None
    positions: jax.Array
    mask_info: Any
    """EasyDeL's wrapping of `Rows.attention_mask` with this layer's window."""
    cache: KVCache = dataclasses.field(metadata={"static": True})
    layer: int = dataclasses.field(metadata={"static": True})
    kv_length: int = dataclasses.field(metadata={"static": True})
    sharding: NamedSharding | None = dataclasses.field(metadata={"static": True})
    """Sharding of k and v on a mesh. Without it, XLA would split them as EasyDeL splits the rows (over fsdp
    too) and gather the whole cache at the end of a decode dispatch."""

    key: ClassVar[None] = None
    starts: ClassVar[None] = None
    indexs: ClassVar[None] = None
    masking_details: ClassVar[None] = None

    def concatenate_to_cache(
        self, *, key: jax.Array, value: jax.Array, **_: Any
    ) -> tuple[jax.Array, jax.Array, Any, KVCacheView, None]:
        """Write new rows and return what attention reads.

        Args:
            key: [rows, length, kv_heads, head_dim], already rotated.
            value: [rows, length, kv_heads, head_dim].
        """
        rows = key.shape[0]
        owners = jnp.arange(rows, dtype=jnp.int32) if self.slots is None else self.slots
        where = (owners[:, None], self.positions)
        k = self.k.at[where].set(key.astype(self.k.dtype), mode="drop")
        v = self.v.at[where].set(value.astype(self.v.dtype), mode="drop")
        if self.sharding is not None:
            k = jax.lax.with_sharding_constraint(k, self.sharding)
            v = jax.lax.with_sharding_constraint(v, self.sharding)
        if self.slots is None:
            seen_k, seen_v = k[:, : self.kv_length], v[:, : self.kv_length]
        else:
            seen_k = k.at[self.slots, : self.kv_length].get(mode="clip")
            seen_v = v.at[self.slots, : self.kv_length].get(mode="clip")
        view = dataclasses.replace(self, k=k, v=v)
        # Assigned here because EasyDeL's Gemma 2 drops the view that its layers return.
        self.cache[self.layer] = view
        return seen_k, seen_v, self.mask_info, view, None


class KVCache:
    """The views of all layers, which EasyDeL's models index and assign."""

    def __init__(
        self,
        arrays: Sequence[jax.Array],
        rows: Rows,
        mask_infos: Sequence[Any],
        sharding: NamedSharding | None,
    ) -> None:
        pairs = zip(arrays[0::2], arrays[1::2], strict=True)
        self.views = [
            KVCacheView(k, v, rows.slots, rows.positions, mask_info, self, layer, rows.kv_length, sharding)
            for layer, ((k, v), mask_info) in enumerate(zip(pairs, mask_infos, strict=True))
        ]

    def __setitem__(self, layer: int, view: KVCacheView) -> None:
        self.views[layer] = view

    def __getitem__(self, layer: int) -> KVCacheView:
        return self.views[layer]

    def __len__(self) -> int:
        return len(self.views)

    def arrays(self) -> tuple[jax.Array, ...]:
        """Return k, v of layer 0, k, v of layer 1, ..."""
        return tuple(array for view in self.views for array in (view.k, view.v))
