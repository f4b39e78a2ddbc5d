"""Attention over pages on one CPU device, by `cpu_kernel`. Knows no model and no EasyDeL."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vinfer.compiler.paged_attention import Visible
from vinfer.cpu_kernel import calls
from vinfer.cpu_kernel.tiles import LENGTH_MULTIPLE


def supports(query: jax.Array, k: jax.Array, v: jax.Array, seen: Visible, soft_cap: float | None) -> bool:
    """Return whether the kernel can do what `paged_attention.attend` is asked for.

    It knows no soft caps and no images that are seen both ways.
    """
    dim = query.shape[3]
    value_dim = v.shape[2] // (k.shape[2] // dim)
    has_vectors = dim % LENGTH_MULTIPLE == 0 and value_dim % LENGTH_MULTIPLE == 0
    return has_vectors and seen.spans is None and soft_cap is None


def attend(
    query: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array,
    seen: Visible,
    *,
    num_kv_heads: int,
    scale: float,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    first_kv_head: jax.Array | None = None,
) -> jax.Array:
    """Attend as `paged_attention.attend` does, for what `supports` accepts."""
    # One device has all heads of the pool.
    assert soft_cap is None
    assert first_kv_head is None
    assert k.shape[2] == num_kv_heads * query.shape[3]
    queries = query.astype(jnp.float32) * scale
    return calls.attend(queries, k, v, table, seen.first, seen.end, sinks).astype(query.dtype)
