"""Computes logprobs of a prompt's tokens on the device, applying the LM head in blocks of rows.

Pure functions of jnp arrays; no EasyDeL, no slots, no cache. Logits of [length, vocab] are never
materialized: a block holds [BLOCK_ROWS, vocab] of them in float32, and as much again for the logprobs. That
is 33 MB in total for a vocabulary of 128 Ki, whatever the chunk's length.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vinfer.bundle.manifest import MAX_TOP_LOGPROBS
from vinfer.compiler.sampler import top_logprobs

BLOCK_ROWS = 32


def prompt_logprobs(
    logits: Callable[[jax.Array], jax.Array], hidden: jax.Array, targets: jax.Array, num_tokens: jax.Array
) -> tuple[jax.Array, ...]:
    """Return raw logprobs of the token after each token of a chunk, and of the 20 most likely ones there.

    Args:
        logits: [rows, hidden] -> float32 [rows, vocab].
        hidden: [length, hidden], last hidden states of the chunk.
        targets: int32 [length], the token after each; arbitrary where there is none.
        num_tokens: int32, tokens of the chunk; blocks that are all padding are skipped.

    Returns:
        float32 [length] of the targets, int32 [length, 20] ids, float32 [length, 20] their logprobs;
        zero in blocks beyond `num_tokens`.
    """
    length = targets.shape[0]
    rows = min(BLOCK_ROWS, length)
    padding = -length % rows
    hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
    targets = jnp.pad(targets, (0, padding))
    wide = (length + padding, MAX_TOP_LOGPROBS)
    outputs: tuple[jax.Array, ...] = (jnp.zeros(wide[0]), jnp.zeros(wide, jnp.int32), jnp.zeros(wide))

    def goes_on(carry: tuple[jax.Array, tuple[jax.Array, ...]]) -> jax.Array:
        return carry[0] < num_tokens

    def score_block(
        carry: tuple[jax.Array, tuple[jax.Array, ...]],
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        start, outputs = carry
        raw = logits(lax.dynamic_slice_in_dim(hidden, start, rows))
        own = lax.dynamic_slice_in_dim(targets, start, rows)
        found = top_logprobs(raw, own, jnp.ones(rows, jnp.bool_))
        outputs = tuple(
            lax.dynamic_update_slice_in_dim(whole, part, start, 0)
            for whole, part in zip(outputs, found, strict=True)
        )
        return start + rows, outputs

    _, outputs = lax.while_loop(goes_on, score_block, (jnp.int32(0), outputs))
    return tuple(output[:length] for output in outputs)
