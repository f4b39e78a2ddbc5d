"""Lark rules for an answer that may begin with reasoning, which is free, and is constrained after it.

Pure functions of how the reasoning's tags are written.
"""

from __future__ import annotations

import dataclasses
import re

_ANY = "(?s:.)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtForm:
    """How reasoning is written.

    Attributes:
        opening, closing: its tags: text, or the id of a control token.
        control_tokens: those that it may contain, in Lark; empty for none.
        is_open: the answer begins inside the reasoning.
    """

    opening: str | int
    closing: str | int
    control_tokens: str = ""
    is_open: bool = False


def after_thought(answer: str, thought: ThoughtForm | None) -> list[str]:
    """Write the `start` of an answer: the rule `answer`, with reasoning before it if there may be any.

    Reasoning must come to its end, which is the first closing tag, because the answer is what was asked for.
    """
    if thought is None:
        return [f"start: {answer}"]
    opening = "" if thought.is_open else _opening(thought)
    lines = [f"start: thought SPACE? {answer}", "SPACE: /[ \\t\\r\\n]{1,4}/", f"thought: {opening} inside"]
    if not thought.is_open:
        lines[0] += f" | {answer}"
    ends = ["last"]
    if isinstance(thought.closing, int):
        lines += [f"PIECE: /{_ANY}+/", f"last: PIECE? <[{thought.closing}]>"]
    else:
        closing = _escaped(thought.closing)
        lines += [
            f"PIECE: /{_ANY}+/ & ~/{_ANY}*{closing}{_ANY}*/",
            f"last[lazy]: /{_ANY}*{closing}/",
        ]
    if thought.control_tokens:
        ends.append(f"PIECE? {thought.control_tokens} inside")
    return [*lines, f"inside: {' | '.join(ends)}"]


def _opening(thought: ThoughtForm) -> str:
    if isinstance(thought.opening, int):
        return f"SPACE? <[{thought.opening}]>"
    return f"/\\s*{_escaped(thought.opening)}/"


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", "\\/")
