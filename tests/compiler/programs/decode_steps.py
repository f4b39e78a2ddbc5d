"""Decode steps over drawn pages: by the decode kernel, interpreted on the CPU, and by plain attention.

    PYTHONPATH=. .venv/dev/bin/python tests/compiler/programs/decode_steps.py

Prints the largest error of each case on the device that JAX finds; on a GPU the kernel is compiled. With a
JSON list of cases, it prints their errors over a mesh of four CPU devices.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import AxisType, Mesh

from vinfer.bundle.manifest import MESH_AXES
from vinfer.compiler import decode_kernel
from vinfer.compiler.kv_cache import KVCache, LayerCache, Rows
from vinfer.compiler.paged_attention import NO_PAGE, visible

Array = npt.NDArray[Any]

MAX_MODEL_LEN = 200
"""Not a multiple of any page size."""
LENGTHS = (1, 0, 31, 32, 33, 199, 200)
"""Positions that each row sees, its own included; 0 is padding. Edges of pages and tiles, and odd ones."""
NUM_DEVICES = 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One decode step of some rows."""

    lengths: tuple[int, ...] = LENGTHS
    page_size: int = 32
    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    value_dim: int | None = None
    window: int | None = None
    soft_cap: float | None = None
    has_sinks: bool = False
    dtype: str = "float32"
    seed: int = 0

    @property
    def positions(self) -> Array:
        """Return int32 [rows, 1]."""
        return np.array([[length - 1 if length else MAX_MODEL_LEN] for length in self.lengths], np.int32)


@dataclasses.dataclass(frozen=True)
class Step:
    """The arrays of a case: keys and values by row and position, and the same in pages."""

    query: Array
    keys: Array
    values: Array
    sinks: Array
    table: Array
    k: Array
    v: Array


def step(case: Case, *, fill: float = np.nan) -> Step:
    """Draw a step; `fill` is what pages hold wherever no row has written."""
    draw = np.random.default_rng(case.seed)
    rows = len(case.lengths)
    value_dim = case.value_dim or case.dim

    def normal(*shape: int) -> Array:
        return np.asarray(jnp.asarray(draw.normal(size=shape), case.dtype).astype(jnp.float32))

    query = normal(rows, case.heads, case.dim)
    keys = normal(rows, MAX_MODEL_LEN, case.kv_heads, case.dim)
    values = normal(rows, MAX_MODEL_LEN, case.kv_heads, value_dim)
    counts = [-(-length // case.page_size) for length in case.lengths]
    free = list(draw.permutation(sum(counts) + 3))
    k, v = (
        np.full((len(free), case.page_size, case.kv_heads * dim), fill, np.float32)
        for dim in (case.dim, value_dim)
    )
    table = np.full((rows, -(-MAX_MODEL_LEN // case.page_size)), NO_PAGE, np.int32)
    for row, (length, count) in enumerate(zip(case.lengths, counts, strict=True)):
        table[row, :count] = [free.pop() for _ in range(count)]
        for position in range(length):
            place = table[row, position // case.page_size], position % case.page_size
            k[place], v[place] = keys[row, position].ravel(), values[row, position].ravel()
    return Step(query, keys, values, normal(case.heads), table, k, v)


@functools.cache
def program(case: Case) -> Callable[..., jax.Array]:
    @jax.jit
    def run(query: Any, k: Any, v: Any, table: Any, positions: Any, sinks: Any) -> jax.Array:
        seen = visible(positions, max_model_len=MAX_MODEL_LEN, window=case.window)
        return decode_kernel.attend(
            query.astype(case.dtype)[:, None],
            k.astype(case.dtype),
            v.astype(case.dtype),
            table,
            seen,
            num_kv_heads=case.kv_heads,
            scale=case.dim**-0.5,
            soft_cap=case.soft_cap,
            sinks=sinks,
            interpret=jax.default_backend() == "cpu",
        )

    return run


def by_kernel(case: Case, of: Step) -> Array:
    """Return [rows, heads, value_dim]."""
    run = program(dataclasses.replace(case, lengths=(0,) * len(case.lengths), seed=0))
    sinks = of.sinks if case.has_sinks else None
    return np.asarray(run(of.query, of.k, of.v, of.table, case.positions, sinks))[:, 0]


def plain(case: Case, of: Step) -> Array:
    """Return float64 [rows, heads, value_dim]: a softmax over what each row sees."""
    output = np.zeros((len(case.lengths), case.heads, of.values.shape[3]))
    for row, length in enumerate(case.lengths):
        sees = slice(max(length - (case.window or length), 0), length)
        for head in range(case.heads):
            kv_head = head // (case.heads // case.kv_heads)
            keys = of.keys[row, sees, kv_head].astype(np.float64)
            scores = keys @ of.query[row, head].astype(np.float64) * case.dim**-0.5
            if case.soft_cap is not None:
                scores = case.soft_cap * np.tanh(scores / case.soft_cap)
            weights = np.exp(scores)
            total = weights.sum() + (np.exp(of.sinks[head]) if case.has_sinks else 0.0)
            if length:
                output[row, head] = weights @ of.values[row, sees, kv_head] / total
    return output


CASES = [
    *(Case(page_size=size) for size in (16, 32, 128)),
    *(Case(kv_heads=kv_heads) for kv_heads in (1, 4)),
    Case(heads=6, kv_heads=2),
    Case(heads=40, kv_heads=2),
    *(Case(dim=dim) for dim in (24, 64, 96)),
    *(Case(value_dim=value_dim) for value_dim in (8, 40)),
    *(Case(window=window) for window in (1, 31, 32, 33, MAX_MODEL_LEN)),
    Case(soft_cap=2.0),
    *(Case(has_sinks=True, window=window) for window in (None, 9)),
    Case(heads=6, dim=24, value_dim=40, page_size=128, window=33, soft_cap=3.0, has_sinks=True),
    Case(lengths=(200,)),
    Case(lengths=(0, 0)),
    Case(lengths=tuple(range(0, 200, 13))),
]


def over_tp(case: Case, of: Step) -> Array:
    """Return [rows, heads, value_dim] of a layer whose heads are split over four devices."""
    mesh = Mesh(
        np.array(jax.devices()[:NUM_DEVICES]).reshape(1, 1, 1, NUM_DEVICES, 1),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
    )
    layer = LayerCache(0, case.window, case.kv_heads, block_len=32, mesh=mesh, kernel="interpreted")
    rows = Rows(jnp.asarray(of.table)[None, None], jnp.asarray(case.positions), MAX_MODEL_LEN)

    @jax.jit
    def run(query: Any, k: Any, v: Any, sinks: Any) -> jax.Array:
        view = KVCache((k, v), rows, [layer])[0]
        return view.attend(query[:, None], scale=case.dim**-0.5, soft_cap=case.soft_cap, sinks=sinks)

    arguments = (of.query, of.k, of.v, of.sinks if case.has_sinks else None)
    assert str(jax.make_jaxpr(run)(*arguments)).count("pallas_call") == 1
    return np.asarray(run(*arguments))[:, 0]


def print_errors() -> None:
    sys.stdout.write(f"on {jax.devices()[0].device_kind}\n")
    for case in CASES:
        of = step(case)
        error = np.abs(by_kernel(case, of) - plain(case, of)).max()
        sys.stdout.write(f"{error:.1e}  {case}\n")


def print_errors_over_tp(cases: list[dict[str, Any]]) -> None:
    errors = []
    for fields in cases:
        case = Case(**fields)
        of = step(case)
        errors.append(float(np.abs(over_tp(case, of) - plain(case, of)).max()))
    sys.stdout.write(json.dumps(errors) + "\n")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print_errors()
    else:
        # Must be set before JAX starts.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={NUM_DEVICES}"
        print_errors_over_tp(json.loads(sys.argv[1]))
