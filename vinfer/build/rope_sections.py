"""Rotary rows of tokens that rotate by three positions: their time, their row and their column (M-RoPE).

Pure functions of arrays. Each pair of a head belongs to one of the three, in sections, so that a token has a
row of its own made of three rows of the usual table.

Source: transformers 5.5, `apply_multimodal_rotary_pos_emb` in `models/qwen2_vl/modeling_qwen2_vl.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def rotary_rows(
    table: jax.Array, positions: jax.Array, sections: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Make a table with a row per token, for a model that looks its rows up.

    Args:
        table: float32 [max_model_len, rotary_dim], cosines, then sines.
        positions: int32 [rows, axes, length]; those beyond the table, of padding, are taken for its last.
        sections: pairs that rotate by each axis; rotary_dim / 2 together.

    Returns:
        float32 [rows * length, rotary_dim], and where each token finds its row, int32 [rows, length].
    """
    rows, _, length = positions.shape
    half = table.shape[1] // 2
    pieces: list[jax.Array] = []
    for first_column in (0, half):
        start = first_column
        for axis, num_pairs in enumerate(sections):
            columns = table[:, start : start + num_pairs]
            pieces.append(columns.at[positions[:, axis]].get(mode="clip"))
            start += num_pairs
    per_token = jnp.concatenate(pieces, axis=-1).reshape(rows * length, 2 * half)
    return per_token, jnp.arange(rows * length, dtype=jnp.int32).reshape(rows, length)
