"""The input items of `/v1/responses`, typed, and their conversion to messages.

Like `chat`, and on the same threads. Clients send the items of earlier answers back as they got them, so the
additional fields of those are accepted too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Tag

from vinfer.server.fields.body_model import HistoryBody
from vinfer.server.fields.content_parts import ImageDetail, ImageSource, check_may_have_image
from vinfer.server.fields.messages import MAX_MESSAGES, MAX_PARTS
from vinfer.server.fields.problems import by_type, only, text_as_part
from vinfer.server.fields.rules import having
from vinfer.server.json_object import Json

_TEXT_TYPES = ("input_text", "output_text")
# One less than the messages of a chat completion, because `instructions` becomes one.
MAX_ITEMS = MAX_MESSAGES - 1
_ITEM_TYPES = ("message", "function_call", "function_call_output", "reasoning")


_text_as_part = text_as_part("input_text")


def _text_as_item(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


_text_type = only(
    *_TEXT_TYPES, otherwise="is {word}; text goes into input_text parts, and images into input_image parts"
)
_item_type = only(
    "message",
    otherwise="is {word}; nothing is kept between requests, and only functions are called: send "
    + ", ".join(_ITEM_TYPES),
)
Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(HistoryBody):
    """A text in a message, or what a function returned."""

    type: Annotated[Literal["input_text", "output_text"], _text_type]
    text: str

    def as_chat(self) -> dict[str, Any]:
        return {"type": "text", "text": self.text}


class ImagePart(HistoryBody):
    """An image in a user's message, or that a function returned: a data or http(s) URL."""

    content_keys: ClassVar[frozenset[str]] = frozenset({"file_id"})

    type: Literal["input_image"]
    image_url: str = Field(min_length=1)
    detail: ImageDetail = "auto"

    def as_chat(self) -> dict[str, Any]:
        return {"type": "image_url", "image_url": self.image_url}


Part = Annotated[
    Annotated[TextPart, Tag("[text]")] | Annotated[ImagePart, Tag("[input_image]")],
    by_type("input_image", otherwise="text"),
]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS)]


_TEXT_CONTENT: Json = {
    "properties": {
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"properties": {"type": {"enum": list(_TEXT_TYPES)}}}},
            ]
        }
    }
}


class MessageItem(HistoryBody):
    """A message; an item without `type` is a message too."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [having("role", "user").schema, _TEXT_CONTENT]})

    type: Annotated[Literal["message"], _item_type] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Parts, BeforeValidator(_text_as_part, json_schema_input_type=str | Parts)]
    id: str | None = None
    status: Status | None = None


class FunctionCallItem(HistoryBody):
    """A function that the model called; `arguments` is JSON text, or empty for none."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str = ""
    id: str | None = None
    status: Status | None = None


class FunctionCallOutputItem(HistoryBody):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: Annotated[Parts, BeforeValidator(_text_as_part, json_schema_input_type=str | Parts)]
    id: str | None = None
    status: Status | None = None


class ReasoningPart(HistoryBody):
    """A part of the model's reasoning."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(HistoryBody):
    """The model's reasoning before it answered; it belongs to the message or the call that follows."""

    content_keys: ClassVar[frozenset[str]] = frozenset({"summary", "encrypted_content"})

    type: Literal["reasoning"]
    content: list[ReasoningPart] | None = Field(None, max_length=MAX_PARTS)
    id: str | None = None
    status: Status | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[FunctionCallItem, Tag("[function_call]")]
    | Annotated[FunctionCallOutputItem, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")],
    by_type(*_ITEM_TYPES, otherwise="message"),
]
_SAYS_SOMETHING: dict[str, Any] = {
    "anyOf": [
        {"properties": {"type": {"not": {"const": "reasoning"}}}},
        {
            "properties": {
                "content": {"type": "array", "contains": {"properties": {"text": {"minLength": 1}}}}
            },
            "required": ["content"],
        },
    ]
}
Items = Annotated[
    list[Item],
    Field(min_length=1, max_length=MAX_ITEMS, json_schema_extra={"contains": _SAYS_SOMETHING}),
]
InputItems = Annotated[Items, BeforeValidator(_text_as_item, json_schema_input_type=str | Items)]


def input_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return items as the messages of a chat completion: one turn of the model is one message.

    Images that functions returned become part of the user's message after the results, because chat templates
    show none in results. There are no messages if the items are only reasoning without content.
    """
    messages: list[dict[str, Any]] = []
    thought = ""
    images: list[dict[str, Any]] = []
    for item in items:
        is_said_by_user = isinstance(item, MessageItem) and item.role == "user"
        if images and not is_said_by_user and not isinstance(item, FunctionCallOutputItem):
            messages.append({"role": "user", "content": images})
            images = []
        if isinstance(item, ReasoningItem):
            thought += "".join(part.text for part in item.content or ())
            continue
        goes_on = isinstance(item, FunctionCallItem) or (
            isinstance(item, MessageItem) and item.role == "assistant"
        )
        if thought and not goes_on:
            messages.append(_unspoken(thought))
            thought = ""
        if isinstance(item, FunctionCallItem):
            _append_call(messages, item, thought)
        elif isinstance(item, FunctionCallOutputItem):
            texts = [part.as_chat() for part in item.output if isinstance(part, TextPart)]
            messages.append({"role": "tool", "content": texts, "tool_call_id": item.call_id})
            images += [part.as_chat() for part in item.output if isinstance(part, ImagePart)]
        else:
            said = {"role": item.role, "content": [*images, *(part.as_chat() for part in item.content)]}
            messages.append({**said, "reasoning_content": thought or None})
            images = []
        thought = ""
    if images:
        messages.append({"role": "user", "content": images})
    return [*messages, _unspoken(thought)] if thought else messages


def _append_call(messages: list[dict[str, Any]], item: FunctionCallItem, thought: str) -> None:
    """Add a call to the model's turn, or begin one with it."""
    if thought or not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "reasoning_content": thought or None})
    function = {"name": item.name, "arguments": item.arguments}
    messages[-1].setdefault("tool_calls", []).append({"id": item.call_id, "function": function})


def _unspoken(thought: str) -> dict[str, Any]:
    """Return a message for reasoning that nothing followed."""
    return {"role": "assistant", "content": "", "reasoning_content": thought}


def input_images(items: Sequence[Item]) -> list[ImageSource]:
    """Return the images of items, in the order that they have in the messages.

    Raises:
        RequestError: names an image that is in a message of another role than the user's.
    """
    sources = []
    for i, item in enumerate(items):
        if isinstance(item, MessageItem):
            name, parts, role = "content", item.content, item.role
        elif isinstance(item, FunctionCallOutputItem):
            name, parts, role = "output", item.output, "user"
        else:
            continue
        for j, part in enumerate(parts):
            if isinstance(part, ImagePart):
                here = f"input[{i}].{name}[{j}]"
                check_may_have_image(role, here)
                sources.append((part.image_url, f"{here}.image_url"))
    return sources
