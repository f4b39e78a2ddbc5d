"""Counting compiles: what must not happen after a server is ready."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from vinfer.engine.loading.compile_count import CompileCounter, loading


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


def test_what_is_compiled_to_load_a_model_is_not_counted() -> None:
    """Others serve while a model is restarted."""
    counter = CompileCounter()
    counter.mark_ready()
    with loading(), ThreadPoolExecutor(1) as pool:
        compile_ahead(2.25)
        pool.submit(contextvars.copy_context().run, compile_ahead, 2.5).result()
        assert counter.num_post_ready == 0
        # A request of another model, on a thread that takes no part.
        pool.submit(compile_ahead, 2.75).result()
    assert counter.num_post_ready == 1
    compile_ahead(3.25)
    assert counter.num_post_ready == 2
    assert counter.num_compiles == 4
