"""Turns one compiled program into figures: copies, temporary memory, bytes of a step against the ideal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from accelerator_check.flow import Lengths, Moved, loops, moved, new_arrays
from accelerator_check.hlo import Instruction, Module, UnreadableError, read_module
from vinfer.bundle.manifest import ArraySpec, Manifest
from vinfer.bundle.programs import ProgramShape


@dataclasses.dataclass(frozen=True)
class Pool:
    """One k or v array of a layer on one device.

    Attributes:
        position_bytes: bytes of one position.
        window: positions that a token sees in its layer; None for all.
    """

    num_elements: int
    num_bytes: int
    position_bytes: int
    window: int | None

    def seen(self, row_len: int) -> int:
        return row_len if self.window is None else min(self.window, row_len)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What is known of one program; None where it is not.

    Attributes:
        copies: arrays as large as a KV array that it makes anew, and how often, in words.
        step_bytes: of main memory per decode step, or per dispatch of another program.
        ideal_bytes: what a decode step, or a verification, cannot do without.
        num_collectives: per decode step, or per dispatch.
        unknown: why something is not known.
    """

    temp_bytes: int | None = None
    copies: tuple[str, ...] | None = None
    step_bytes: float | None = None
    ideal_bytes: float | None = None
    num_collectives: int | None = None
    compile_seconds: float = 0
    unknown: tuple[str, ...] = ()


def read_figures(
    record: Path, shape: ProgramShape, manifest: Manifest, block_len: int, row_len: int
) -> Figures:
    """Read NAME.json and NAME.hlo of `compile`."""
    if not record.exists():
        return Figures(unknown=("not compiled",))
    stated = json.loads(record.read_text())
    figures = Figures(temp_bytes=stated.get("temp_bytes"), compile_seconds=stated["compile_seconds"])
    reason = stated.get("error") or stated.get("hlo_error")
    if reason:
        return dataclasses.replace(figures, unknown=(reason,))
    pools = pools_of(manifest)
    try:
        module = read_module(record.with_suffix(".hlo").read_text())
        copies = pool_copies(module, pools)
        flow = step_flow(module, shape, pools, block_len, row_len)
    except UnreadableError as error:
        return dataclasses.replace(figures, unknown=(f"HLO: {error}",))
    return dataclasses.replace(
        figures,
        copies=copies,
        step_bytes=None if flow.unknown else flow.num_bytes,
        ideal_bytes=ideal_bytes(manifest, shape, pools, row_len),
        num_collectives=flow.num_collectives,
        unknown=flow.unknown,
    )


def pools_of(manifest: Manifest) -> tuple[Pool, ...]:
    """Return each k and v array as one device holds it, with the most pages that requests can use."""
    num_pages = manifest.page_plan.most_pages()
    pools = []
    for array, spec in zip(manifest.kv, manifest.kv_specs(num_pages), strict=True):
        num_bytes = spec.num_bytes_per_device(manifest.mesh)
        positions = num_pages[array.group] * manifest.page_size
        item_bytes = _item_bytes(spec)
        pools.append(
            Pool(num_bytes // item_bytes, num_bytes, num_bytes // positions, manifest.kv_windows[array.group])
        )
    return tuple(pools)


def _item_bytes(spec: ArraySpec) -> int:
    one = spec.model_copy(update={"shape": (1,), "axes": ()})
    return one.num_bytes_per_device({})


def pool_copies(module: Module, pools: Sequence[Pool]) -> tuple[str, ...]:
    """Name the new arrays that have as many elements as a pool, or more bytes than the largest."""
    sizes = {pool.num_elements for pool in pools}
    most = max(pool.num_bytes for pool in pools)
    found: dict[str, int] = {}
    for instruction, leaf in new_arrays(module):
        if leaf.num_elements in sizes or leaf.num_bytes >= most:
            words = f"{instruction.opcode} {leaf}"
            found[words] = found.get(words, 0) + 1
    return tuple(f"{number} x {words}" for words, number in sorted(found.items()))


def step_flow(
    module: Module, shape: ProgramShape, pools: Sequence[Pool], block_len: int, row_len: int
) -> Moved:
    """Return what a decode step moves, or one dispatch of another program, with rows of `row_len` positions.

    A loop over a pool turns once per block. The other loop of a verification turns once per token, as if all
    drafts were right. Of conditionals, the cheapest branch counts: greedy sampling.
    """

    def has_pool(*of: Instruction) -> list[Pool]:
        sizes = {leaf.num_elements for instruction in of for leaf in instruction.leaves}
        return [pool for pool in pools if pool.num_elements in sizes]

    def most_seen(of: Sequence[Instruction]) -> int | None:
        return max((pool.seen(row_len) for pool in has_pool(*of)), default=None)

    def turns(loop: Instruction, depth: int) -> int | None:
        seen = most_seen([loop])
        if depth:
            return None
        if seen is None:
            return shape.length if shape.kind == "verify" else None
        return -(-seen // block_len)

    lengths = Lengths(turns, most_seen)
    if shape.kind != "decode":
        return moved(module, module.entry, lengths)
    steps = [loop for loop in loops(module, module.entry) if has_pool(loop)]
    if len(steps) != 1:
        return Moved(unknown=(f"{len(steps)} loops over steps",))
    return sum(
        (moved(module, module[name], lengths) for name in steps[0].called("condition", "body")), Moved()
    )


def ideal_bytes(manifest: Manifest, shape: ProgramShape, pools: Sequence[Pool], row_len: int) -> float | None:
    """Return the bytes of all weights once, and of what the rows see in each pool."""
    if shape.kind not in ("decode", "verify"):
        return None
    weights = sum(spec.num_bytes_per_device(manifest.mesh) for spec in manifest.weights)
    return weights + shape.rows * sum(pool.seen(row_len) * pool.position_bytes for pool in pools)
