"""Stores image features on the devices and replaces placeholder tokens with them.

One array holds the features of all images that are in use or were used recently, one per row. The host
decides which rows belong to which image (`vinfer.engine.feature_cache`). Knows neither models nor encoders.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class ImageFeatures:
    """The features that a prefill dispatch may look up.

    Attributes:
        pool: [feature rows, hidden].
        index: int32 [rows, length], the row of `pool` for each position; -1 for text.
        rope_positions: see `Rows`.
    """

    pool: jax.Array
    index: jax.Array
    rope_positions: jax.Array | None = None

    def spans(self, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the run of placeholders around each position: one image, because text surrounds each image.

        Args:
            starts: int32 [rows], position of the first token of each row.

        Returns:
            The first position of the run and the one after its last, int32 [rows, length]; the range is
                empty for text.
        """
        length = self.index.shape[1]
        offsets = jnp.arange(length, dtype=jnp.int32)
        stands_here = self.index >= 0
        first = lax.cummax(jnp.where(stands_here, -1, offsets), axis=1) + 1
        end = lax.cummin(jnp.where(stands_here, length, offsets), axis=1, reverse=True)
        return starts[:, None] + first, starts[:, None] + end

    def merge(self, embeddings: jax.Array) -> jax.Array:
        """Replace embeddings [rows, length, hidden] with features; does nothing if there are no images."""

        def merged() -> jax.Array:
            features = self.pool.at[self.index].get(mode="clip").astype(embeddings.dtype)
            return jnp.where((self.index >= 0)[:, :, None], features, embeddings)

        return lax.cond(jnp.any(self.index >= 0), merged, lambda: embeddings)


def store(pool: jax.Array, features: jax.Array, rows: jax.Array) -> jax.Array:
    """Write features [images, per image, hidden] to rows, int32 [images, per image].

    A row beyond the end of the pool is padding and is not written.
    """
    return pool.at[rows].set(features.astype(pool.dtype), mode="drop")
