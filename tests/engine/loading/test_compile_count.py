"""Counting compiles: what must not happen after a server is ready."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from vinfer.engine.loading.compile_count import CompileCounter


def new_program(constant: float) -> Callable[[jax.Array], jax.Array]:
    """Return a function that JAX has not seen before; equal constants make equal programs."""
    return lambda x: x * constant + 1.0


def compile_ahead(constant: float) -> jax.stages.Compiled:
    return jax.jit(new_program(constant)).lower(jax.ShapeDtypeStruct((3,), np.float32)).compile()


def test_a_compile_after_ready_is_counted_and_a_compiled_call_is_not() -> None:
    counter = CompileCounter()
    compiled = compile_ahead(1.25)
    assert counter.num_compiles == 1
    assert counter.num_post_ready == 0
    counter.mark_ready()
    for _ in range(3):
        np.asarray(compiled(np.ones(3, np.float32)))
    assert counter.num_post_ready == 0
    # The negative control: the same value computed by a new program.
    np.asarray(jax.jit(new_program(1.5))(np.ones(3, np.float32)))
    assert counter.num_post_ready == 1
    assert counter.num_compiles == 2
