"""Write the HLO that the tests here read: small programs through the real compilers.

    PYTHONPATH=scripts .venv/dev/bin/python tests/accelerators/write_excerpts.py TARGET

Needs the compilers that scripts/accelerators asks for. The files are checked in, so that the tests need none.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from accelerator_check.targets import compiling_environment

os.environ.update(compiling_environment(os.environ))

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import SingleDeviceSharding

from vinfer.engine.loading.executables import compiler_options
from vinfer.launch.device_kinds import KINDS, described_devices

ROWS, LENGTH, HEADS, KV_HEADS, DIM, PAGE, BLOCK = 32, 8192, 32, 8, 64, 128, 512
WIDTH = KV_HEADS * DIM


def dense_cache(kv: Any, query: Any, new: Any, table: Any, position: Any, steps: Any) -> Any:
    """Decode over a cache [slots, length, heads, dim], as vinfer did before there were pages."""

    def step(carry: Any) -> Any:
        index, (k, v), query, position = carry
        rows = jnp.arange(ROWS)
        k, v = (
            array.at[rows, position].set(new.reshape(ROWS, KV_HEADS, DIM), mode="drop") for array in (k, v)
        )
        grouped = query.reshape(ROWS, KV_HEADS, HEADS // KV_HEADS, DIM)
        scores = jnp.einsum("skgd,slkd->skgl", grouped, k, preferred_element_type=jnp.float32)
        seen = (jnp.arange(LENGTH) <= position[:, None])[:, None, None]
        probs = jax.nn.softmax(jnp.where(seen, scores, -1e30)).astype(v.dtype)
        query = jnp.einsum("skgl,slkd->skgd", probs, v).reshape(query.shape)
        return index + 1, (k, v), query, position + 1

    return lax.while_loop(lambda carry: carry[0] < steps, step, (jnp.int32(0), kv, query, position))[1:3]


def pages(kv: Any, query: Any, new: Any, table: Any, position: Any, steps: Any) -> Any:
    """Decode over pools of pages with `vinfer.compiler.paged_attention`."""
    from vinfer.compiler.paged_attention import attend, visible, write

    def step(carry: Any) -> Any:
        index, (k, v), query, position = carry
        at = position[:, None]
        k, v = (write(pool, new[:, None], table, at, max_model_len=LENGTH) for pool in (k, v))
        seen = visible(at, max_model_len=LENGTH, window=None)
        query = attend(
            query, k, v, table, seen, num_kv_heads=KV_HEADS, scale=1.0, block_len=BLOCK, widens=True
        )
        return index + 1, (k, v), query, position + 1

    return lax.while_loop(lambda carry: carry[0] < steps, step, (jnp.int32(0), kv, query, position))[1:3]


def kernel(kv: Any, query: Any, new: Any, table: Any, position: Any, steps: Any) -> Any:
    """Decode over pools of pages with `vinfer.compiler.decode_kernel`."""
    from vinfer.compiler.decode_kernel import attend
    from vinfer.compiler.paged_attention import visible, write

    def step(carry: Any) -> Any:
        index, (k, v), query, position = carry
        at = position[:, None]
        k, v = (write(pool, new[:, None], table, at, max_model_len=LENGTH) for pool in (k, v))
        seen = visible(at, max_model_len=LENGTH, window=None)
        return (
            index + 1,
            (k, v),
            attend(query, k, v, table, seen, num_kv_heads=KV_HEADS, scale=1.0),
            position + 1,
        )

    return lax.while_loop(lambda carry: carry[0] < steps, step, (jnp.int32(0), kv, query, position))[1:3]


def updates(kv: Any, query: Any, new: Any, table: Any, position: Any, steps: Any) -> Any:
    """Write four slices in a loop whose length is known."""

    def step(index: Any, pool: Any) -> Any:
        return lax.dynamic_update_slice(pool, new[None, :PAGE, :] * index.astype(new.dtype), (index, 0, 0))

    return (lax.fori_loop(0, 4, step, kv[0]), kv[1]), query


def slim(hlo: str) -> str:
    """Keep the computations, without what names files or only the compiler reads."""
    hlo = hlo[re.search(r"^(ENTRY )?%.*\{$", hlo, re.MULTILINE).start() :]
    hlo = re.sub(r", metadata=\{[^}]*\}", "", hlo)
    return re.sub(r", backend_config=(.*)$", _kept_config, hlo, flags=re.MULTILINE)


def _kept_config(found: re.Match[str]) -> str:
    """Keep how often a loop turns, and the name and the grid of a kernel."""
    kept = re.findall(r'"known_trip_count":\{"n":"\d+"\}', found[1])[:1]
    kept = kept or re.findall(r'grid_[xyz] = \d+ : i32|name = "\w+"', found[1])
    return f", backend_config={{{', '.join(kept)}}}" if kept else ""


def main(name: str) -> None:
    (device,) = described_devices(name, 1)
    place = SingleDeviceSharding(device)
    array = jax.ShapeDtypeStruct
    pool = array((ROWS * LENGTH // PAGE, PAGE, WIDTH), jnp.bfloat16)
    dense = array((ROWS, LENGTH, KV_HEADS, DIM), jnp.bfloat16)
    programs = (
        (dense_cache, dense, (ROWS, HEADS)),
        (pages, pool, (ROWS, 1, HEADS)),
        (updates, pool, (ROWS, 1, HEADS)),
        *([(kernel, pool, (ROWS, 1, HEADS))] if KINDS[name].platform == "cuda" else []),
    )
    for program, kv, heads in programs:
        inputs = (
            array((*heads, DIM), jnp.bfloat16),
            array((PAGE if program is updates else ROWS, WIDTH), jnp.bfloat16),
            array((ROWS, LENGTH // PAGE), jnp.int32),
            array((ROWS,), jnp.int32),
            array((), jnp.int32),
        )
        jitted = jax.jit(program, donate_argnums=0, in_shardings=place, out_shardings=place)
        compiled = jitted.lower((kv, kv), *inputs).compile(compiler_options(device))
        path = Path(__file__).parent / f"{program.__name__}-{name}.hlo"
        path.write_text(slim(compiled.as_text()))


if __name__ == "__main__":
    main(sys.argv[1])
