"""What a compiled program does with memory: arrays that it makes anew, bytes that it moves, collectives.

Knows HLO's instructions and no model. `Lengths` says what is data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from accelerator_check.hlo import Computation, Instruction, Leaf, Module, UnreadableError
from accelerator_check.kernels import is_paged_decode, paged_decode_bytes

NO_WORK = frozenset(
    (
        "add-dependency",
        "after-all",
        "bitcast",
        "constant",
        "domain",
        "get-tuple-element",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
    )
)
IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}
"""Instructions that update their first operand, and which operand has the new values."""
PARTIAL_READS = frozenset(("dynamic-slice", "gather", "slice"))
LAZY = frozenset(("bitcast", "reshape", "convert", "copy", "transpose", "negate"))
"""Within a fusion these compute only the elements that are needed."""
COLLECTIVES = frozenset(
    (
        "all-gather",
        "all-reduce",
        "all-to-all",
        "collective-broadcast",
        "collective-permute",
        "ragged-all-to-all",
        "reduce-scatter",
    )
)
FREE_CALLS = frozenset(
    ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "GatherScatterIndicesBitpacked")
)
WHOLE_READS = ("__cublas$", "__triton_gemm", "TopK", "__cub$", "Sharding")
"""Custom calls that read their operands once and write their results."""


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What is data while a program runs; None if nobody knows.

    Attributes:
        turns: how often a loop turns, at a depth of such loops.
        seen: positions that each row sees in the pools among the operands of a kernel.
    """

    turns: Callable[[Instruction, int], int | None]
    seen: Callable[[Sequence[Instruction]], int | None]


NOTHING_KNOWN = Lengths(lambda *_: None, lambda *_: None)


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes read from and written to main memory, and collectives.

    Attributes:
        unknown: instructions whose bytes cannot be told.
    """

    num_bytes: float = 0
    num_collectives: int = 0
    unknown: tuple[str, ...] = ()

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.num_bytes + other.num_bytes,
            self.num_collectives + other.num_collectives,
            tuple(sorted({*self.unknown, *other.unknown})),
        )

    def times(self, number: int) -> Moved:
        return Moved(self.num_bytes * number, self.num_collectives * number, self.unknown)


def new_arrays(module: Module) -> Iterator[tuple[Instruction, Leaf]]:
    """Yield every array that an instruction makes anew, in all computations that run."""
    for computation in _running(module, module.entry):
        for instruction in computation.instructions.values():
            for place in _new_leaves(module, computation, instruction):
                yield instruction, instruction.leaves[place]


def moved(module: Module, computation: Computation, lengths: Lengths, depth: int = 0) -> Moved:
    """Return what one run of a computation moves; of a conditional, the cheapest branch counts."""
    total = Moved()
    for instruction in computation.instructions.values():
        total += _moved_by(module, computation, instruction, lengths, depth)
    return total


def loops(module: Module, computation: Computation) -> Iterator[Instruction]:
    """Yield the loops that a computation starts and whose length is data, also those of what it calls."""
    for instruction in computation.instructions.values():
        if instruction.opcode == "while":
            if constant_turns(module, computation, instruction) is None:
                yield instruction
        elif instruction.opcode in ("call", "conditional", "async-start"):
            for name in _bodies(instruction):
                yield from loops(module, module[name])


def _bodies(instruction: Instruction) -> tuple[str, ...]:
    """Return the computations that run as they are when an instruction runs; a fusion has none."""
    keys = {
        "while": ("condition", "body"),
        "conditional": ("branch_computations", "true_computation", "false_computation"),
        "call": ("to_apply",),
        "async-start": ("calls",),
    }.get(instruction.opcode, ())
    names = instruction.called(*keys)
    if keys and not names:
        raise UnreadableError(f"{instruction.opcode} {instruction.name} calls nothing")
    return names


def _running(module: Module, computation: Computation) -> Iterator[Computation]:
    found: dict[str, Computation] = {}
    waiting = [computation]
    while waiting:
        current = waiting.pop()
        if current.name not in found:
            found[current.name] = current
            for instruction in current.instructions.values():
                waiting += [module[name] for name in _bodies(instruction)]
    yield from found.values()


def _new_leaves(module: Module, computation: Computation, instruction: Instruction) -> list[int]:
    """Return the indexes of the leaves of a result that have memory of their own."""
    opcode = instruction.opcode
    if opcode in NO_WORK or opcode.endswith(("-done", "-update")) or _bodies(instruction):
        return []
    if opcode == "copy-start":
        return [0]
    if opcode.endswith("-start"):
        # (operands, results, contexts), where contexts are scalars.
        return list(
            range(min(len(instruction.operands), len(instruction.leaves) - 1), len(instruction.leaves))
        )
    aliased = set(instruction.aliased_leaves)
    if opcode in IN_PLACE:
        aliased.add(0)
    if opcode == "fusion":
        aliased |= _updates_in_place(module, _inside(module, instruction)).keys()
    return [place for place in range(len(instruction.leaves)) if place not in aliased]


def _inside(module: Module, fusion: Instruction) -> Computation:
    names = fusion.called("calls")
    if len(names) != 1:
        raise UnreadableError(f"fusion {fusion.name} calls {len(names)} computations")
    return module[names[0]]


def _updates_in_place(module: Module, inside: Computation) -> dict[int, int]:
    """Return, for each result of a fusion that updates an operand in place, the bytes that it writes."""
    roots = list(inside.operands(inside.root)) if inside.root.opcode == "tuple" else [inside.root]
    written = {}
    for place, root in enumerate(roots):
        num_bytes = _written_in_place(module, inside, root)
        if num_bytes is not None:
            written[place] = num_bytes
    return written


def _written_in_place(module: Module, inside: Computation, result: Instruction) -> int | None:
    """Return the bytes of an update of a parameter; None if the result is a new array."""
    num_bytes = None
    current = result
    while current.opcode != "parameter":
        if current.opcode in IN_PLACE:
            update = inside[current.operands[IN_PLACE[current.opcode]]]
            num_bytes = (num_bytes or 0) + update.leaves[0].num_bytes
        elif current.opcode == "fusion":
            nested = _updates_in_place(module, _inside(module, current))
            if len(current.leaves) != 1 or 0 not in nested:
                return None
            num_bytes = (num_bytes or 0) + nested[0]
        elif current.opcode != "bitcast":
            return None
        current = inside[current.operands[0]]
    return num_bytes


def _read_bytes(module: Module, inside: Computation, index: int) -> int:
    """Return how many bytes of one parameter a fusion reads."""
    parameter = inside.parameters[index]
    whole = parameter.leaves[0].num_bytes
    needed, waiting, seen = 0, [parameter], {parameter.name}
    while waiting:
        source = waiting.pop()
        if source.name == inside.root.name:
            return whole
        for user in inside.instructions.values():
            if source.name not in user.operands:
                continue
            place = user.operands.index(source.name)
            if place == 0 and user.opcode in PARTIAL_READS:
                needed += user.leaves[0].num_bytes
            elif place == 0 and user.opcode in IN_PLACE:
                continue
            elif user.opcode == "fusion":
                needed += _read_bytes(module, _inside(module, user), place)
            elif user.opcode in LAZY:
                if user.name not in seen:
                    seen.add(user.name)
                    waiting.append(user)
            else:
                return whole
    return min(needed, whole)


def _moved_by(
    module: Module, computation: Computation, instruction: Instruction, lengths: Lengths, depth: int
) -> Moved:
    opcode = instruction.opcode
    if opcode in NO_WORK or opcode.endswith(("-done", "-update")):
        return Moved()
    if opcode == "while":
        return _moved_by_loop(module, computation, instruction, lengths, depth)
    if opcode == "conditional":
        branches = [moved(module, module[name], lengths, depth) for name in _bodies(instruction)]
        return min(branches, key=lambda branch: (len(branch.unknown), branch.num_bytes))
    if bodies := _bodies(instruction):
        return sum((moved(module, module[name], lengths, depth) for name in bodies), Moved())
    if opcode == "custom-call":
        return _moved_by_custom_call(computation, instruction, lengths)
    return Moved(
        _read_by(module, computation, instruction) + _written_by(module, instruction),
        opcode.removesuffix("-start") in COLLECTIVES,
    )


def _moved_by_loop(
    module: Module, computation: Computation, loop: Instruction, lengths: Lengths, depth: int
) -> Moved:
    number = constant_turns(module, computation, loop)
    is_data = number is None
    if number is None:
        number = lengths.turns(loop, depth)
    once = sum((moved(module, module[name], lengths, depth + is_data) for name in _bodies(loop)), Moved())
    if number is None:
        return once + Moved(unknown=(f"the number of turns of {loop.name}",))
    return once.times(number)


def constant_turns(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """Return how often a loop turns: as stated, or counted in ones from 0 to a constant. None: it is data."""
    if loop.trip_count is not None:
        return loop.trip_count
    (condition,), (body,) = loop.called("condition"), loop.called("body")
    compare = module[condition].root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = module[condition].operands(compare)
    start = computation[loop.operands[0]]
    if counter.tuple_index is None or start.opcode != "tuple" or limit.constant is None:
        return None
    first = computation[start.operands[counter.tuple_index]]
    if first.opcode == "copy":
        first = computation[first.operands[0]]
    root = module[body].root
    following = module[body][root.operands[counter.tuple_index]] if root.opcode == "tuple" else root
    if following.opcode != "add" or first.constant != 0:
        return None
    terms = list(module[body].operands(following))
    is_counter = any(term.tuple_index == counter.tuple_index for term in terms)
    return limit.constant if is_counter and any(term.constant == 1 for term in terms) else None


def _moved_by_custom_call(computation: Computation, call: Instruction, lengths: Lengths) -> Moved:
    operands = list(computation.operands(call))
    if is_paged_decode(call):
        seen = lengths.seen(operands)
        if seen is None:
            return Moved(unknown=(f"the pool of {call.name}",))
        return Moved(paged_decode_bytes(call, operands, seen))
    target = call.attributes.partition('custom_call_target="')[2].partition('"')[0]
    if target in FREE_CALLS:
        return Moved()
    num_bytes = sum(leaf.hbm_bytes for operand in operands for leaf in operand.leaves)
    num_bytes += sum(leaf.hbm_bytes for leaf in call.leaves)
    return Moved(num_bytes, unknown=() if target.startswith(WHOLE_READS) else (f"custom call {target}",))


def _read_by(module: Module, computation: Computation, instruction: Instruction) -> int:
    operands = list(computation.operands(instruction))
    opcode = instruction.opcode
    if opcode == "copy-start":
        return instruction.leaves[1].hbm_bytes
    if opcode.removesuffix("-start") in PARTIAL_READS and operands[0].leaves[0].hbm_bytes:
        result = instruction.leaves[-2] if opcode.endswith("-start") else instruction.leaves[0]
        return result.num_bytes
    if opcode in IN_PLACE:
        return operands[IN_PLACE[opcode]].leaves[0].hbm_bytes
    if opcode == "fusion":
        inside = _inside(module, instruction)
        return sum(
            _read_bytes(module, inside, place)
            for place, operand in enumerate(operands)
            if operand.leaves and operand.leaves[0].hbm_bytes
        )
    return sum(leaf.hbm_bytes for operand in operands for leaf in operand.leaves)


def _written_by(module: Module, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode == "copy-start":
        return instruction.leaves[0].hbm_bytes
    if opcode.endswith("-start"):
        return sum(leaf.hbm_bytes for leaf in instruction.leaves[len(instruction.operands) :])
    updates: dict[int, int] = {}
    if opcode == "fusion":
        updates = _updates_in_place(module, _inside(module, instruction))
    return sum(
        min(updates.get(place, leaf.hbm_bytes), leaf.hbm_bytes)
        for place, leaf in enumerate(instruction.leaves)
        if opcode not in IN_PLACE
    )
