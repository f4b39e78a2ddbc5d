"""The events that answer parsers emit piece by piece; pure data, used by the parsers and the server."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """More of the model's answer."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reasoning:
    """More of the model's reasoning before it answers."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallStart:
    """The beginning of a tool call."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of the arguments of the latest call."""

    text: str


Event = Text | Reasoning | CallStart | CallArguments
