"""Hidden states of a chunk to the part of an embedding that comes of it, on the device.

Pure functions of jnp arrays; no EasyDeL, no slots, no cache. Mean and last-token pooling are one sum over
different tokens, so one program serves both and a prompt of any length: the host adds what its chunks give.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def pooled_sum(hidden: jax.Array, pooled_from: jax.Array, lengths: jax.Array) -> jax.Array:
    """Sum the hidden states of the tokens that count.

    Args:
        hidden: [rows, length, hidden], after the final norm, padded.
        pooled_from: int32 [rows], the first token that counts.
        lengths: int32 [rows], tokens of the chunk; those that count end there.

    Returns:
        float32 [rows, hidden]; zero where no token counts.
    """
    places = jnp.arange(hidden.shape[1], dtype=jnp.int32)
    counts = (places >= pooled_from[:, None]) & (places < lengths[:, None])
    # A product would let what padding holds through where that is not finite.
    return jnp.sum(jnp.where(counts[:, :, None], hidden.astype(jnp.float32), 0.0), axis=1)
