"""What a parser of answers gives out, piece by piece; pure data, known to the parsers and to the server."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """More of what the model says."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallStart:
    """A call of a tool begins."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of the arguments of the call that began last."""

    text: str


Event = Text | Reasoning | CallStart | CallArguments
