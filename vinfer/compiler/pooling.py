"""Pools the hidden states of a prompt's chunk: its part of an embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pooled_sum(hidden: jax.Array, pooled_from: jax.Array, lengths: jax.Array) -> jax.Array:
    """Sum the hidden states of the pooled tokens: a chunk's part of an embedding.

    Mean and last-token pooling are both sums, over different tokens. So one program serves both, for
    prompts of any length: the host adds up the sums of the chunks.

    Args:
        hidden: [rows, length, hidden], after the final norm, padded.
        pooled_from: int32 [rows], the first pooled token.
        lengths: int32 [rows], tokens of the chunk; pooling ends there.

    Returns:
        float32 [rows, hidden]; zero if no token is pooled.
    """
    places = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    counts = (places >= pooled_from[:, None]) & (places < lengths[:, None])
    # A product would let non-finite values of padding through.
    return jnp.sum(jnp.where(counts[:, :, None], hidden.astype(jnp.float32), 0.0), axis=1)
