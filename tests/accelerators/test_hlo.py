"""scripts/accelerators reads what the real compilers wrote: copies, bytes of a step, and what is unreadable.

The excerpts are whole programs of `write_excerpts`. Inline texts are single constructs in their syntax.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from accelerator_check.flow import NOTHING_KNOWN, constant_turns, loops, moved, new_arrays
from accelerator_check.hlo import Module, UnreadableError, read_module
from accelerator_check.read import Pool, pool_copies, step_flow

from vinfer.bundle.programs import ProgramShape

HERE = Path(__file__).parent
ROWS, LENGTH, WIDTH, BLOCK = 32, 8192, 512, 512
POOL = Pool(ROWS * LENGTH * WIDTH, ROWS * LENGTH * WIDTH * 2, WIDTH * 2, window=None)
DECODE = ProgramShape(kind="decode", rows=ROWS, length=8)
BIG = "bf16[2048,128,512]{2,1,0}"


def excerpt(name: str) -> Module:
    return read_module((HERE / f"{name}.hlo").read_text())


def module(entry: str, others: str = "") -> Module:
    return read_module(f"{others}\nENTRY %main (p: {BIG}) -> {BIG} {{\n{entry}\n}}\n")


@pytest.mark.parametrize("target", ["v5e", "h100"])
def test_a_cache_with_an_axis_of_heads_is_copied(target: str) -> None:
    """The negative control: what vinfer did before there were pages must not pass."""
    copies = pool_copies(excerpt(f"dense_cache-{target}"), [POOL])
    assert any("bf16[32,8192,8,64]" in copy for copy in copies)


@pytest.mark.parametrize("target", ["v5e", "h100"])
def test_pages_are_written_in_place_and_gathered_block_by_block(target: str) -> None:
    assert pool_copies(excerpt(f"pages-{target}"), [POOL]) == ()


@pytest.mark.parametrize("row_len", [1024, 8192])
def test_a_decode_step_over_pages_reads_what_its_rows_see(row_len: int) -> None:
    step = step_flow(excerpt("pages-v5e"), DECODE, [POOL], BLOCK, row_len)
    ideal = 2 * ROWS * row_len * POOL.position_bytes
    assert step.unknown == ()
    assert ideal <= step.num_bytes < 1.01 * ideal


def test_what_a_gpu_gathers_is_written_and_read_again() -> None:
    """A fusion with two results: the values of a block, and the keys."""
    text = (HERE / "pages-h100.hlo").read_text()
    assert "(bf16[32,512,512]{2,1,0}, bf16[128,1,128,512]{3,2,0,1}) fusion(" in text
    ideal = 2 * ROWS * 1024 * POOL.position_bytes
    step = step_flow(read_module(text), DECODE, [POOL], BLOCK, 1024)
    assert 3 * ideal < step.num_bytes < 4 * ideal


@pytest.mark.parametrize("target", ["v5e", "h100"])
def test_dynamic_update_slice_in_a_loop_of_known_length(target: str) -> None:
    updates = excerpt(f"updates-{target}")
    assert pool_copies(updates, [POOL]) == ()
    assert list(loops(updates, updates.entry)) == []
    (loop,) = (i for i in updates.entry.instructions.values() if i.opcode == "while")
    assert constant_turns(updates, updates.entry, loop) == 4
    one_slice = 128 * WIDTH * 2
    turns = moved(updates, updates.entry, NOTHING_KNOWN)
    assert turns.unknown == ()
    # Each turn reads and writes one slice; afterwards the query is copied.
    assert turns.num_bytes == pytest.approx(4 * 2 * one_slice + 2 * 32 * 32 * 64 * 2, rel=0.001)


def test_copy_start_makes_its_first_result() -> None:
    started = module(
        f"  %p = {BIG} parameter(0)\n"
        f"  %copy-start.1 = ({BIG}, {BIG}, u32[]{{:S(2)}}) copy-start(%p)\n"
        f"  ROOT %copy-done.1 = {BIG} copy-done(%copy-start.1)"
    )
    assert pool_copies(started, [POOL]) == ("1 x copy-start bf16[2048,128,512]",)
    assert moved(started, started.entry, NOTHING_KNOWN).num_bytes == 2 * POOL.num_bytes


def test_a_copy_into_vmem_reads_main_memory_once() -> None:
    prefetched = module(
        "  %p = f32[256,128]{1,0:T(8,128)} parameter(0)\n"
        "  %slice-start.1 = ((f32[256,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) "
        "slice-start(%p), slice={[0:8], [0:128]}\n"
        "  ROOT %slice-done.1 = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%slice-start.1)"
    )
    assert moved(prefetched, prefetched.entry, NOTHING_KNOWN).num_bytes == 8 * 128 * 4


def test_each_result_of_a_fusion_is_judged() -> None:
    """One result updates its operand in place; the other is a new array of the same size."""
    inside = (
        f"%inside (a: {BIG}, b: {BIG}) -> ({BIG}, {BIG}) {{\n"
        f"  %a = {BIG} parameter(0)\n"
        f"  %b = {BIG} parameter(1)\n"
        "  %zero = s32[] constant(0)\n"
        "  %one = bf16[1,1,512]{2,1,0} slice(%b), slice={[0:1], [0:1], [0:512]}\n"
        f"  %kept = {BIG} dynamic-update-slice(%a, %one, %zero, %zero, %zero)\n"
        f"  %new = {BIG} negate(%b)\n"
        f"  ROOT %both = ({BIG}, {BIG}) tuple(%kept, %new)\n"
        "}\n"
    )
    fused = module(
        f"  %p = {BIG} parameter(0)\n"
        f"  %f = ({BIG}, {BIG}) fusion(%p, %p), kind=kLoop, calls=%inside\n"
        f"  ROOT %kept = {BIG} get-tuple-element(%f), index=0",
        inside,
    )
    assert pool_copies(fused, [POOL]) == ("1 x fusion bf16[2048,128,512]",)


def test_a_copy_before_an_update_inside_a_fusion_is_a_copy() -> None:
    inside = (
        f"%inside (a: {BIG}, b: bf16[1,1,512]) -> {BIG} {{\n"
        f"  %a = {BIG} parameter(0)\n"
        "  %b = bf16[1,1,512]{2,1,0} parameter(1)\n"
        "  %zero = s32[] constant(0)\n"
        f"  %copied = {BIG} copy(%a)\n"
        f"  ROOT %new = {BIG} dynamic-update-slice(%copied, %b, %zero, %zero, %zero)\n"
        "}\n"
    )
    fused = module(
        f"  %p = {BIG} parameter(0)\n"
        "  %u = bf16[1,1,512]{2,1,0} parameter(1)\n"
        f"  ROOT %f = {BIG} fusion(%p, %u), kind=kLoop, calls=%inside",
        inside,
    )
    assert pool_copies(fused, [POOL]) == ("1 x fusion bf16[2048,128,512]",)


def test_an_alias_that_the_compiler_states_counts_as_in_place() -> None:
    called = module(
        f"  %p = {BIG} parameter(0)\n"
        f'  ROOT %c = {BIG} custom-call(%p), custom_call_target="write_rows", '
        "output_to_operand_aliasing={{}: (0, {})}"
    )
    assert pool_copies(called, [POOL]) == ()


def test_the_bytes_of_an_unknown_custom_call_are_unknown() -> None:
    called = module(
        f'  %p = {BIG} parameter(0)\n  ROOT %c = f32[] custom-call(%p), custom_call_target="mine"'
    )
    assert moved(called, called.entry, NOTHING_KNOWN).unknown == ("custom call mine",)


def test_a_copy_in_a_branch_or_a_called_computation_is_found() -> None:
    branch = f"%branch (a: {BIG}) -> {BIG} {{\n  %a = {BIG} parameter(0)\n  ROOT %c = {BIG} copy(%a)\n}}\n"
    taken = module(
        f"  %p = {BIG} parameter(0)\n"
        "  %i = s32[] constant(0)\n"
        f"  ROOT %c = {BIG} conditional(%i, %p, %p), branch_computations={{%branch, %branch}}",
        branch,
    )
    assert [str(leaf) for _, leaf in new_arrays(taken)] == ["bf16[2048,128,512]"]


def test_collectives_are_counted_once_per_turn() -> None:
    reduced = module(
        "  %p = f32[8,128]{1,0} parameter(0)\n"
        "  %started = f32[8,128]{1,0} all-reduce-start(%p), to_apply=%sum\n"
        "  %done = f32[8,128]{1,0} all-reduce-done(%started)\n"
        "  ROOT %other = f32[16,128]{1,0} all-gather(%done), dimensions={0}"
    )
    assert moved(reduced, reduced.entry, NOTHING_KNOWN).num_collectives == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no ENTRY"),
        ("HloModule jit_call\n", "no ENTRY"),
        ("ENTRY %main (p: f32[2]) -> f32[2] {\n  garbage\n}\n", "garbage"),
        ("ENTRY %main (p: f32[2]) -> f32[2] {\n  ROOT %p = f32[2]{0} parameter(0)\n", "ends within"),
        ("ENTRY %main (p: f32[2]) -> f32[2] {\n  %p = f32[2]{0} parameter(0)\n}\n", "no ROOT"),
        ("ENTRY %main (p: x9[2]) -> x9[2] {\n  ROOT %p = x9[2]{0} parameter(0)\n}\n", "dtype x9"),
        ("ENTRY %main () -> f32[2] {\n  ROOT %c = f32[2]{0} call(), to_apply=%lost\n}\n", "lost"),
        ("ENTRY %main () -> f32[2] {\n  ROOT %f = f32[2]{0} fusion(), kind=kLoop\n}\n", "calls 0"),
    ],
)
def test_text_that_is_not_understood_is_unreadable(text: str, why: str) -> None:
    with pytest.raises(UnreadableError, match=why):
        pool_copies(read_module(text), [POOL])


def test_a_program_without_its_loop_over_steps_is_unknown() -> None:
    step = step_flow(module(f"  ROOT %p = {BIG} parameter(0)"), DECODE, [POOL], BLOCK, 1024)
    assert step.unknown == ("0 loops over steps",)
