"""Reads the text of an optimised HLO module: computations, instructions and the shapes of their results.

Raises `UnreadableError` at anything it does not understand, so that nothing is mistaken for "no copies".
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

ITEM_BITS = {
    "pred": 8, "token": 0, "opaque": 0,
    "s2": 2, "u2": 2, "s4": 4, "u4": 4, "f4e2m1fn": 4,
    "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "f8e4m3": 8, "f8e8m0fnu": 8, "f8e4m3b11fnuz": 8,
    "s16": 16, "u16": 16, "f16": 16, "bf16": 16,
    "s32": 32, "u32": 32, "f32": 32,
    "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_LEAF = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_START = re.compile(r"\s+(ROOT )?%([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\) -> .*\{$")
_MEMORY_SPACE = re.compile(r"S\((\d+)\)")
_HBM = 0


class UnreadableError(Exception):
    """Text that this reader does not understand."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a result. `memory_space` 0 is the device's main memory."""

    dtype: str
    shape: tuple[int, ...]
    memory_space: int = _HBM

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * ITEM_BITS[self.dtype] // 8

    @property
    def hbm_bytes(self) -> int:
        return self.num_bytes if self.memory_space == _HBM else 0

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line. `leaves` are the arrays of its result, in order, without the structure of tuples."""

    name: str
    opcode: str
    leaves: tuple[Leaf, ...]
    operands: tuple[str, ...]
    attributes: str
    arguments: str

    @property
    def parameter_index(self) -> int:
        return int(self.arguments)

    def called(self, *keys: str) -> tuple[str, ...]:
        """Return the names of the computations in some attributes, such as `body=%x` or `calls={%x, %y}`."""
        found: list[str] = []
        for key in keys:
            for one, several in re.findall(rf"\b{key}=(?:%([\w.\-]+)|\{{([^}}]*)\}})", self.attributes):
                found += [one] if one else re.findall(r"%([\w.\-]+)", several)
        return tuple(found)

    @property
    def aliased_leaves(self) -> frozenset[int]:
        """Leaves that share the memory of an operand, as the compiler states it."""
        stated = re.search(r"output_to_operand_aliasing=\{(.*?)\}(?:, [a-z_]+=|$)", self.attributes)
        if stated is None:
            return frozenset()
        return frozenset(int(index or 0) for index in re.findall(r"\{(\d*)\}: \(", stated[1]))

    @property
    def constant(self) -> int | None:
        """Value of an integer constant."""
        is_integer = self.opcode == "constant" and re.fullmatch(r"-?\d+", self.arguments)
        return int(self.arguments) if is_integer else None

    @property
    def tuple_index(self) -> int | None:
        """Which element a get-tuple-element takes; None for other instructions."""
        stated = re.search(r"\bindex=(\d+)", self.attributes)
        return int(stated[1]) if self.opcode == "get-tuple-element" and stated else None

    @property
    def trip_count(self) -> int | None:
        stated = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.attributes)
        return int(stated[1]) if stated else None


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]
    root: Instruction

    def __getitem__(self, name: str) -> Instruction:
        if name not in self.instructions:
            raise UnreadableError(f"{self.name} has no instruction {name}")
        return self.instructions[name]

    def operands(self, instruction: Instruction) -> Iterator[Instruction]:
        return (self[name] for name in instruction.operands)

    @property
    def parameters(self) -> dict[int, Instruction]:
        return {i.parameter_index: i for i in self.instructions.values() if i.opcode == "parameter"}


@dataclasses.dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: Computation

    def __getitem__(self, name: str) -> Computation:
        if name not in self.computations:
            raise UnreadableError(f"no computation {name}")
        return self.computations[name]


def read_module(text: str) -> Module:
    """Read a whole module.

    Raises:
        UnreadableError: a line of a computation that is not understood, or no entry.
    """
    computations: dict[str, Computation] = {}
    entry: str | None = None
    header: re.Match[str] | None = None
    lines: list[str] = []
    for line in text.splitlines():
        if header is None:
            header = _HEADER.match(line.rstrip())
            lines = []
        elif line.startswith("}"):
            computations[header[2]] = _read_computation(header[2], lines)
            entry = header[2] if header[1] else entry
            header = None
        elif line.strip():
            lines.append(line)
    if header is not None:
        raise UnreadableError(f"the text ends within {header[2]}")
    if entry is None:
        raise UnreadableError("there is no ENTRY computation")
    return Module(computations, computations[entry])


def _read_computation(name: str, lines: list[str]) -> Computation:
    instructions: dict[str, Instruction] = {}
    root = None
    for line in lines:
        instruction, is_root = _read_instruction(line)
        instructions[instruction.name] = instruction
        root = instruction if is_root else root
    if root is None:
        raise UnreadableError(f"{name} has no ROOT")
    return Computation(name, instructions, root)


def _read_instruction(line: str) -> tuple[Instruction, bool]:
    start = _START.match(line)
    if start is None:
        raise UnreadableError(line.strip()[:160])
    rest = re.sub(r"/\*.*?\*/", "", line[start.end() :])
    type_end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    opcode = re.match(r"\s*([a-z][\w\-]*)\(", rest[type_end:])
    if type_end < 0 or opcode is None:
        raise UnreadableError(line.strip()[:160])
    arguments_start = type_end + opcode.end() - 1
    arguments_end = _closing(rest, arguments_start)
    if arguments_end < 0:
        raise UnreadableError(line.strip()[:160])
    arguments = rest[arguments_start + 1 : arguments_end - 1]
    return (
        Instruction(
            name=start[2],
            opcode=opcode[1],
            leaves=_leaves(rest[:type_end], line),
            operands=() if opcode[1] == "constant" else tuple(re.findall(r"%([\w.\-]+)", arguments)),
            attributes=rest[arguments_end:],
            arguments=arguments,
        ),
        start[1] is not None,
    )


def _leaves(text: str, line: str) -> tuple[Leaf, ...]:
    found = []
    for dtype, shape, layout in _LEAF.findall(text):
        if dtype not in ITEM_BITS:
            raise UnreadableError(f"dtype {dtype}: {line.strip()[:120]}")
        space = _MEMORY_SPACE.search(layout)
        sizes = tuple(int(size) for size in shape.split(",") if size)
        found.append(Leaf(dtype, sizes, int(space[1]) if space else _HBM))
    if not found and text.strip() != "()":
        raise UnreadableError(line.strip()[:160])
    return tuple(found)


def _closing(text: str, start: int = 0) -> int:
    """Return the place after the parenthesis that closes the one at `start`; -1 if there is none."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] == "(":
            depth += 1
        elif text[place] == ")":
            depth -= 1
            if depth == 0:
                return place + 1
    return -1
