"""Finds what a chat template leaves out of a conversation: a message's text, a tool call or a tool.

Runs on worker threads. A template may drop a role, a second system message or the text next to a tool call
without a word. So the conversation's shape is rendered once more, with a word of its own for every text, call
and tool, and each word must appear. Contents do not matter, so the result is kept per shape.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vinfer.errors import RequestError

Message = dict[str, Any]
Tool = dict[str, Any]
_TEXT, _BLANK = "text", "blank"
_WORD = re.compile(r"xprobe[0-9]+x")


@dataclasses.dataclass(frozen=True, slots=True)
class MessageShape:
    """A message without its contents.

    Attributes:
        parts: the type of each part, `blank` for a text of mere white space; None for no content.
        is_list: whether the content is a list of parts.
    """

    role: str
    parts: tuple[str, ...] | None
    is_list: bool
    num_calls: int


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """A conversation without its contents; `variables` are the template's other variables."""

    messages: tuple[MessageShape, ...]
    num_tools: int
    variables: tuple[tuple[str, Any], ...]

    @property
    def num_parts(self) -> int:
        return sum(1 + len(message.parts or ()) + message.num_calls for message in self.messages)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A part of a conversation: `index` is a message's, or a tool's if `kind` is `tool`."""

    kind: str
    index: int
    position: int = 0


def shape_of(messages: Sequence[Message], num_tools: int, variables: Mapping[str, Any]) -> Shape:
    """Return the shape of a conversation, with messages as `ChatTemplate.render` takes them."""
    return Shape(tuple(map(_message_shape, messages)), num_tools, tuple(sorted(variables.items())))


def first_hidden(
    shape: Shape, render: Callable[[list[Message], list[Tool], dict[str, Any]], str]
) -> Place | None:
    """Return the first part that the template does not show; None if it shows everything.

    Args:
        render: renders messages and tools with the template's other variables.

    Raises:
        RequestError: the template refuses conversations of this shape.
    """
    messages, tools, words = _skeleton(shape)
    rendered = render(messages, tools, dict(shape.variables)).casefold()
    shown = set(_WORD.findall(rendered))
    return next((place for word, place in words.items() if word not in shown), None)


def refusal(place: Place, messages: Sequence[Message]) -> RequestError:
    """Return the error for a part that would be missing from the prompt; the caller raises it."""
    says = "the model's chat template does not show"
    if place.kind == "tool":
        return RequestError(f"{says} tools in this conversation: leave them out", param="tools")
    role = messages[place.index]["role"]
    path = f"messages[{place.index}]"
    if place.kind == "call":
        path += f".tool_calls[{place.position}]"
        return RequestError(f"{says} {path}: send one call per message, or leave it out", param=path)
    if messages[place.index].get("tool_calls"):
        return RequestError(
            f"{says} the text of {path}, which has tool calls too: leave its content out",
            param=f"{path}.content",
        )
    return RequestError(
        f"{says} the text of {path}, a {role} message, in this place: leave it out or put it into another "
        "message",
        param=f"{path}.content",
    )


def _message_shape(message: Message) -> MessageShape:
    content = message.get("content")
    num_calls = len(message.get("tool_calls") or ())
    if content is None:
        return MessageShape(message["role"], None, False, num_calls)
    parts = content if isinstance(content, list) else [{"type": _TEXT, "text": content}]
    kinds = tuple(_BLANK if not part.get("text", "-").strip() else str(part["type"]) for part in parts)
    return MessageShape(message["role"], kinds, isinstance(content, list), num_calls)


def _skeleton(shape: Shape) -> tuple[list[Message], list[Tool], dict[str, Place]]:
    """Return a conversation of this shape, and the words in it that must be shown."""
    words: dict[str, Place] = {}

    def word(kind: str, index: int, position: int = 0) -> str:
        text = f"xprobe{len(words)}x"
        words[text] = Place(kind, index, position)
        return text

    messages: list[Message] = []
    unanswered: list[str] = []
    for i, of_message in enumerate(shape.messages):
        message: Message = {"role": of_message.role, "content": None}
        if of_message.parts is not None:
            parts = [
                {"type": _TEXT, "text": word(_TEXT, i, j) if kind == _TEXT else ""}
                if kind in (_TEXT, _BLANK)
                else {"type": kind}
                for j, kind in enumerate(of_message.parts)
            ]
            message["content"] = parts if of_message.is_list else parts[0]["text"]
        if of_message.num_calls:
            # Nine characters: Mistral's templates check the length.
            ids = [f"{i % 10**5:05}{j % 10**4:04}" for j in range(of_message.num_calls)]
            message["tool_calls"] = [_call(id_, word("call", i, j)) for j, id_ in enumerate(ids)]
            unanswered = ids
        if of_message.role == "tool":
            message["tool_call_id"] = unanswered.pop(0) if unanswered else "0" * 9
        messages.append(message)
    tools = [_tool(word("tool", i)) for i in range(shape.num_tools)]
    return messages, tools, words


def _call(id_: str, word: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": word, "arguments": {"a": word}}}


def _tool(name: str) -> Tool:
    parameters = {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": name, "description": "", "parameters": parameters}}
