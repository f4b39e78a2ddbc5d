"""Where the features of images lie on the devices, and how they take the place of placeholder tokens.

One array holds the features of all images that are in use or were lately, one per row; the host decides
which rows belong to which image (`vinfer.engine.feature_cache`). Knows neither models nor encoders.
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
        index: int32 [rows, length], the row of `pool` that stands at each position; -1 where text does.
        rope_positions: see `Rows`.
    """

    pool: jax.Array
    index: jax.Array
    rope_positions: jax.Array | None = None

    def spans(self, starts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Find the run of placeholders that each position stands in: one image, as text is around each.

        Args:
            starts: int32 [rows], position of the first token of each row.

        Returns:
            The first position of the run and the one behind its last, int32 [rows, length]; nothing lies
            between the two where text is.
        """
        length = self.index.shape[1]
        offsets = jnp.arange(length, dtype=jnp.int32)
        stands_here = self.index >= 0
        first = lax.cummax(jnp.where(stands_here, -1, offsets), axis=1) + 1
        end = lax.cummin(jnp.where(stands_here, length, offsets), axis=1, reverse=True)
        return starts[:, None] + first, starts[:, None] + end

    def merge(self, embeddings: jax.Array) -> jax.Array:
        """Put features in the place of embeddings [rows, length, hidden]; a dispatch of text does nothing."""

        def merged() -> jax.Array:
            features = self.pool.at[self.index].get(mode="clip").astype(embeddings.dtype)
            return jnp.where((self.index >= 0)[:, :, None], features, embeddings)

        return lax.cond(jnp.any(self.index >= 0), merged, lambda: embeddings)


def store(pool: jax.Array, features: jax.Array, rows: jax.Array) -> jax.Array:
    """Write features [images, per image, hidden] to rows, int32 [images, per image].

    A row beyond the end of the pool is written nowhere: padding of a dispatch.
    """
    return pool.at[rows].set(features.astype(pool.dtype), mode="drop")
