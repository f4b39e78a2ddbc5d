"""Finds communication in the HLO text of a compiled program (`compiled.as_text()`).

Text in, plain data out; knows neither JAX nor bundles.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

Shape = tuple[int, ...]

GATHERS = ("all-gather", "all-gather-start", "all-to-all", "collective-permute", "collective-permute-start")

# `%name = f32[2,3]{1,0} opcode(%a, %b), attribute=...`; a tuple type is in parentheses.
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<opcode>[\w-]+)\((?P<operands>.*?)\)(?:,|$)"
)
_SHAPE = re.compile(r"\b[a-z]+\d*\w*\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    opcode: str
    operand_shapes: tuple[Shape, ...]
    """Shapes per device, because the text is of the partitioned program."""


def instructions(text: str) -> Iterator[Instruction]:
    """Yield every instruction of every computation, with the shapes of its operands."""
    shapes: dict[str, tuple[Shape, ...]] = {}
    for line in text.splitlines():
        if line.endswith("{"):
            shapes = {}
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        shapes[match["name"]] = _shapes(match["type"])
        operands = [shape for name in _OPERAND.findall(match["operands"]) for shape in shapes.get(name, ())]
        yield Instruction(match["opcode"], tuple(operands))


def _shapes(type_text: str) -> tuple[Shape, ...]:
    return tuple(tuple(int(size) for size in sizes.split(",") if size) for sizes in _SHAPE.findall(type_text))


def moved_kv_shapes(text: str, *, kv_lengths: set[int], head_dim: int) -> list[Shape]:
    """List operands of gathers and permutes that are whole sequences of keys or values.

    Args:
        kv_lengths: lengths that attention may read: every kv_length and max_model_len. No other size may
            equal one of them or head_dim.
    """
    return [
        shape
        for instruction in instructions(text)
        if instruction.opcode in GATHERS
        for shape in instruction.operand_shapes
        if kv_lengths & set(shape) and head_dim in shape
    ]
