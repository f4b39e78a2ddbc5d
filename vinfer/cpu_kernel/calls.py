"""The kernels as JAX sees them: traced into programs by the build, known to XLA by name where they run."""

from __future__ import annotations

import ctypes
import functools
import math
import threading

import jax
import jax.numpy as jnp

from vinfer.cpu_kernel.attention import MASKED
from vinfer.cpu_kernel.handlers import KERNELS, compile_handler, native_target
from vinfer.cpu_kernel.tiles import LENGTH_MULTIPLE

_DTYPES = ("float32", "bfloat16", "float16")
TARGETS = {(kernel, dtype): f"vinfer.{kernel}.{dtype}" for kernel in KERNELS for dtype in _DTYPES}
"""Names of the handlers in programs, by kernel and dtype of weights, keys and values."""
_MOST_ROWS = 128
"""XLA's own product packs the weights anew at each call, which more rows pay for."""


_registering = threading.Lock()


def register_all(dtype: str) -> None:
    """Tell XLA about all kernels, before it meets a program that calls them. Any thread."""
    with _registering:
        for kernel in KERNELS:
            _register(kernel, dtype)


@functools.cache
def _register(kernel: str, dtype: str) -> None:
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    handler = new_capsule(compile_handler(kernel, native_target(dtype)), None, None)
    jax.ffi.register_ffi_target(TARGETS[kernel, dtype], handler, platform="cpu")


def multiply(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return [..., out] in the dtype of the weights for x [..., in] and weights [out, in], on one CPU device.

    Sums are float32. A result has the same bits whatever other rows there are, up to 128.
    """
    dtype = weights.dtype.name
    num_rows = math.prod(x.shape[:-1])
    num_outputs, length = weights.shape
    if num_rows > _MOST_ROWS or length % LENGTH_MULTIPLE:
        return jnp.einsum("...i,oi->...o", x.astype(dtype), weights)
    register_all(dtype)
    out = jax.ShapeDtypeStruct((num_rows, num_outputs), jnp.float32)
    rows = x.reshape(num_rows, length).astype(dtype).astype(jnp.float32)
    product = jax.ffi.ffi_call(TARGETS["product", dtype], out)(rows, weights)
    return product.astype(dtype).reshape(*x.shape[:-1], num_outputs)


def attend(
    query: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array,
    first: jax.Array,
    end: jax.Array,
    sinks: jax.Array | None,
) -> jax.Array:
    """Attend over the pages of each row, on one CPU device.

    Args:
        query: [rows, length, heads, head_dim], scaled.
        k, v: pools [pages, page_size, kv_heads * their head_dim].
        table: int32 [rows, pages of a row].
        first, end: int32 [rows, length], which positions each token sees: `first` <= position < `end`.
        sinks: [heads], a score per head that takes part in the softmax and has no value.

    Returns:
        float32 [rows, length, heads, value_dim].
    """
    rows, length, heads, dim = query.shape
    value_dim = v.shape[2] // (k.shape[2] // dim)
    dtype = k.dtype.name
    register_all(dtype)
    no_sinks = jnp.full(heads, MASKED, jnp.float32)
    out = jax.ShapeDtypeStruct((rows * length, heads, value_dim), jnp.float32)
    output = jax.ffi.ffi_call(TARGETS["attention", dtype], out)(
        query.reshape(rows * length, heads, dim).astype(jnp.float32),
        k,
        v,
        table,
        first.reshape(-1),
        end.reshape(-1),
        no_sinks if sinks is None else sinks.astype(jnp.float32),
    )
    return output.reshape(rows, length, heads, value_dim)
