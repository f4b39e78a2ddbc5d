"""Finds communication and copies in the HLO text of a compiled program (`compiled.as_text()`).

Text in, plain data out; knows neither JAX nor bundles.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator

Shape = tuple[int, ...]

_COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
COLLECTIVES = (*_COLLECTIVES, *(f"{name}-start" for name in _COLLECTIVES))
COPIES = ("copy", "copy-start")

# `%name = f32[2,3]{1,0} opcode(%a, %b), attribute=...`; a tuple type is in parentheses.
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<opcode>[\w-]+)\((?P<operands>.*?)\)(?:,|$)"
)
_SHAPE = re.compile(r"\b[a-z]+\d*\w*\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction; shapes are per device, because the text is of the partitioned program."""

    opcode: str
    operand_shapes: tuple[Shape, ...]
    result_shapes: tuple[Shape, ...]


def instructions(text: str) -> Iterator[Instruction]:
    """Yield every instruction of every computation, with the shapes of its operands and results."""
    shapes: dict[str, tuple[Shape, ...]] = {}
    for line in text.splitlines():
        if line.endswith("{"):
            shapes = {}
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        shapes[match["name"]] = _shapes(match["type"])
        operands = [shape for name in _OPERAND.findall(match["operands"]) for shape in shapes.get(name, ())]
        yield Instruction(match["opcode"], tuple(operands), shapes[match["name"]])


def _shapes(type_text: str) -> tuple[Shape, ...]:
    return tuple(tuple(int(size) for size in sizes.split(",") if size) for sizes in _SHAPE.findall(type_text))


def moves_of(text: str, *, shapes: Collection[Shape]) -> list[tuple[str, Shape]]:
    """List the collectives and copies of whole pools, each with the shape of the pool.

    Args:
        shapes: those of a pool over all devices and on one device. No other array may have one of them.
    """
    return [
        (instruction.opcode, shape)
        for instruction in instructions(text)
        if instruction.opcode in (*COLLECTIVES, *COPIES)
        for shape in (*instruction.operand_shapes, *instruction.result_shapes)
        if shape in shapes
    ]
