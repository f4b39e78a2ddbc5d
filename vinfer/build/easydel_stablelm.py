"""What EasyDeL 0.3.0 gets wrong in StableLM, put right on the built module."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vinfer.build.easydel_attention import drop_output_bias


def correct_stablelm(module: Any) -> None:
    """Use EasyDeL's general attention with a norm of its own for every head.

    - `StableLmAttention.__call__` masks causally a second time, counting a chunk's rows from 0, whatever the
      mask says of itself. `UnifiedAttention.__call__` does not.
    - `StableLmLayerNormPerHead.__call__` splits into one piece instead of one per head (`jnp.split(x, 1)`
      where torch means pieces of size 1), so that all heads get the first head's norm.
    - See `drop_output_bias`.
    """
    for layer in module.model.layers:
        layer.self_attn.__class__ = _attention_class()
        drop_output_bias(layer.self_attn)


@functools.cache
def _attention_class() -> type[Any]:
    from easydel.layers.attention import UnifiedAttention
    from easydel.modules.stablelm.modeling_stablelm import StableLmAttention

    methods = {"__call__": UnifiedAttention.__call__, "_postprocess_qkv": _normalise_heads}
    return type("StableLmAttention", (StableLmAttention,), methods)


def _normalise_heads(
    attention: Any, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalise queries and keys [rows, length, heads, head_dim], where the model does that."""
    if attention.qk_layernorm:
        queries = _layer_norm(queries, attention.q_layernorm.norms)
        keys = _layer_norm(keys, attention.k_layernorm.norms)
    return queries, keys, values


def _layer_norm(states: jax.Array, norms: Any) -> jax.Array:
    scales = jnp.stack([norm.scale[...] for norm in norms]).astype(jnp.float32)
    centred = states.astype(jnp.float32)
    centred -= centred.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + norms[0].epsilon) * scales).astype(states.dtype)
