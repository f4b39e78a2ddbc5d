"""The numbers that decide how a request samples its tokens, declared once for both halves.

Each is an array of the device's state, an input of `set_slot`, a parameter of the engine and a default of the
model. Pure data: never imports JAX. `config.sampling` and the request's fields limit what may be asked for.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def _number(default: float, dtype: str, *, off: float | None = None, is_stated: bool = True) -> Any:
    """Declare a number.

    Args:
        default: OpenAI's.
        dtype: of the array that holds one per slot.
        off: what a free slot has; None if that is the default.
        is_stated: a checkpoint's generation_config.json may state it, under the same name.
    """
    metadata = {"dtype": dtype, "off": default if off is None else off, "is_stated": is_stated}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingNumbers:
    """The numbers of one request.

    Attributes:
        temperature: 0 is greedy.
        top_p: 1 is off, and 0 leaves only the most likely token.
        top_k: 0 is off.
        min_p: 0 is off.
    """

    temperature: float = _number(1.0, "float32", off=0.0)
    top_p: float = _number(1.0, "float32")
    top_k: int = _number(0, "int32")
    min_p: float = _number(0.0, "float32")
    repetition_penalty: float = _number(1.0, "float32")
    presence_penalty: float = _number(0.0, "float32", is_stated=False)
    frequency_penalty: float = _number(0.0, "float32", is_stated=False)


@dataclasses.dataclass(frozen=True, slots=True)
class NumberSpec:
    """How one of the numbers is stored; see `_number`."""

    name: str
    dtype: str
    off: float
    is_stated: bool


NUMBERS = tuple(NumberSpec(field.name, **field.metadata) for field in dataclasses.fields(SamplingNumbers))
