"""The bytes of a kernel that HLO does not state, against the loads that the kernel does as it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
sys.path.insert(0, str(Path(__file__).parents[1] / "compiler" / "programs"))

from accelerator_check.flow import NOTHING_KNOWN, Lengths, moved
from accelerator_check.hlo import Instruction, Module, UnreadableError, read_module
from accelerator_check.kernels import is_paged_decode, paged_decode_bytes
from accelerator_check.read import Pool, pool_copies, step_flow
from decode_steps import MAX_MODEL_LEN, Case, step
from jax.experimental.pallas import triton

from vinfer.bundle.programs import ProgramShape
from vinfer.compiler import decode_kernel
from vinfer.compiler.paged_attention import visible

pytestmark = pytest.mark.compiles

ROWS, LENGTH, WIDTH = 32, 8192, 512
POOL = Pool(ROWS * LENGTH * WIDTH, ROWS * LENGTH * WIDTH * 2, WIDTH * 2, window=None)
DECODE = ProgramShape(kind="decode", rows=ROWS, length=8)
EXCERPT = Path(__file__).parent / "kernel-h100.hlo"


def call_of(case: Case, *, splits: int, target: str = "__gpu$xla.gpu.triton", extra: str = "") -> Module:
    """Return a module with one call of the kernel, as the compiler writes it."""
    rows, pages = len(case.lengths), -(-MAX_MODEL_LEN // case.page_size)
    value_dim = case.value_dim or case.dim
    types = [
        f"f32[{rows},{case.heads},{case.dim}]",
        *(f"f32[9,{case.page_size},{case.kv_heads * dim}]" for dim in (case.dim, value_dim)),
        f"s32[{rows},{pages}]",
        *(f"s32[{size}]" for size in (rows, rows, 1)),
    ]
    lines = [f"  %p{place} = {kind} parameter({place})" for place, kind in enumerate(types)]
    arguments = ", ".join(f"%p{place}" for place in range(len(types)))
    parts = f"f32[{rows},{splits},{case.heads}]"
    result = f"({parts}, {parts}, f32[{rows},{splits},{case.heads},{value_dim}])"
    grid = zip("xyz", (rows, case.kv_heads, splits), strict=True)
    config = ", ".join([*(f"grid_{axis} = {size} : i32" for axis, size in grid), 'name = "paged_decode"'])
    lines.append(
        f"  ROOT %call = {result} custom-call({arguments}{extra}), "
        f'custom_call_target="{target}", backend_config={{{config}}}'
    )
    return read_module("ENTRY %main () -> f32[1] {\n" + "\n".join(lines) + "\n}\n")


def stated_bytes(case: Case, splits: int, seen: int) -> int:
    entry = call_of(case, splits=splits).entry
    return paged_decode_bytes(entry.root, list(entry.operands(entry.root)), seen)


def counted_bytes(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return the bytes that the kernel loads and stores as it runs, and how many parts a row has."""
    # Callbacks come from several threads; appending is atomic.
    counted: list[int] = []

    def count(num_bytes: Any) -> None:
        counted.append(int(num_bytes))

    def load(ref: Any, *, mask: Any, other: Any) -> Any:
        jax.debug.callback(count, jnp.sum(mask) * ref.dtype.itemsize)
        return triton.load(ref, mask=mask, other=other)

    def store(ref: Any, value: Any, *, mask: Any) -> None:
        jax.debug.callback(count, jnp.sum(mask) * value.dtype.itemsize)
        triton.store(ref, value, mask=mask)

    class Scalars:
        """A reference that counts what is read one number at a time."""

        def __init__(self, ref: Any) -> None:
            self._ref = ref

        def __getitem__(self, place: Any) -> Any:
            jax.debug.callback(count, jnp.int32(self._ref.dtype.itemsize))
            return self._ref[place]

    def body(
        query: Any, k: Any, v: Any, table: Any, first: Any, end: Any, head: Any, *others: Any, **options: Any
    ) -> None:
        paged_decode(query, k, v, *map(Scalars, (table, first, end, head)), *others, **options)

    paged_decode = decode_kernel.paged_decode
    loads = type("Triton", (), {"load": load, "store": store, "CompilerParams": triton.CompilerParams})
    monkeypatch.setattr(decode_kernel, "triton", loads)
    monkeypatch.setattr(decode_kernel, "paged_decode", body)
    of = step(case)
    output = decode_kernel.attend(
        jnp.asarray(of.query)[:, None],
        jnp.asarray(of.k),
        jnp.asarray(of.v),
        jnp.asarray(of.table),
        visible(jnp.asarray(case.positions), max_model_len=MAX_MODEL_LEN, window=case.window),
        num_kv_heads=case.kv_heads,
        scale=1.0,
        interpret=True,
    )
    output.block_until_ready()
    jax.effects_barrier()
    splits = decode_kernel.num_splits(len(case.lengths), case.kv_heads, of.table.shape[1])
    return sum(counted), splits


@pytest.mark.parametrize(
    ("case", "seen"),
    [
        (Case(lengths=(200, 200)), 200),
        (Case(lengths=(131,) * 40, kv_heads=4, heads=8, value_dim=24), 131),
        (Case(lengths=(200, 77), window=32, page_size=128, dim=64, heads=6), 32),
        (Case(lengths=(1,) * 200, kv_heads=1), 1),
    ],
    ids=repr,
)
def test_what_is_stated_is_what_the_kernel_loads_and_stores(
    case: Case, seen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, splits = counted_bytes(case, monkeypatch)
    stated = stated_bytes(case, splits, seen)
    if case.window is None:
        assert stated == counted
    else:
        # A window that begins within a tile touches one tile more, and so one more entry of the table.
        assert stated <= counted <= stated + 4 * len(case.lengths) * case.kv_heads


def test_a_step_with_the_kernel_reads_what_its_rows_see() -> None:
    module = read_module(EXCERPT.read_text())
    ideal = 2 * ROWS * 1024 * POOL.position_bytes
    found = step_flow(module, DECODE, [POOL], 512, 1024)
    assert found.unknown == ()
    assert ideal < found.num_bytes < 1.05 * ideal
    assert pool_copies(module, [POOL]) == ()


def test_windows_are_those_of_the_pool() -> None:
    module = read_module(EXCERPT.read_text())
    windowed = Pool(POOL.num_elements, POOL.num_bytes, POOL.position_bytes, window=128)
    found = step_flow(module, DECODE, [windowed], 512, 1024)
    assert found.num_bytes < 0.25 * step_flow(module, DECODE, [POOL], 512, 1024).num_bytes


def test_a_kernel_over_an_unknown_pool_is_unknown() -> None:
    module = call_of(Case(), splits=2)
    assert moved(module, module.entry, NOTHING_KNOWN).unknown == ("the pool of call",)
    assert moved(module, module.entry, Lengths(lambda *_: None, lambda _: 100)).unknown == ()


def test_another_kernel_is_not_taken_for_ours() -> None:
    def root(module: Module) -> Instruction:
        return module.entry.root

    assert is_paged_decode(root(call_of(Case(), splits=2)))
    assert not is_paged_decode(root(call_of(Case(), splits=2, target="mine")))
    other = call_of(Case(), splits=2, extra=", %p0").entry
    operands = list(other.operands(other.root))
    with pytest.raises(UnreadableError, match="8 arguments"):
        paged_decode_bytes(other.root, operands, 100)


def test_the_excerpt_has_the_parts_that_the_kernel_makes() -> None:
    (line,) = (line for line in EXCERPT.read_text().splitlines() if "paged_decode" in line)
    splits = decode_kernel.num_splits(ROWS, WIDTH // 64, LENGTH // 128)
    assert f"f32[{ROWS},{splits},32,64]" in line
    assert np.prod([ROWS, WIDTH // 64, splits]) == 512
