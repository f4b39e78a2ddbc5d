"""The messages of a conversation: their types, and what each role may carry.

Runs on the event loop or, for large bodies, in a worker thread.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from vinfer.errors import RequestError
from vinfer.server.fields.body_model import HistoryBody
from vinfer.server.fields.content_parts import ContentPart, check_may_have_image
from vinfer.server.fields.problems import text_as_part
from vinfer.server.fields.rules import Condition, Problem, Rule, absent, all_of, any_of, having, present
from vinfer.server.fields.tools import parsed_arguments

MAX_MESSAGES = 4096
"""The limit of messages in one request."""
MAX_PARTS = 4096
"""The limit of content parts, or of tool calls, in one message."""

ContentParts = Annotated[list[ContentPart], Field(max_length=MAX_PARTS)]


class CalledFunction(HistoryBody):
    """A function the model called in an earlier turn; `arguments` is JSON text, or empty for none."""

    name: str = Field(min_length=1)
    arguments: str = ""


class ToolCall(HistoryBody):
    """A tool call of an earlier assistant turn. The results that follow answer calls without an `id`."""

    content_keys: ClassVar[frozenset[str]] = frozenset({"custom"})

    id: str | None = Field(None, min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction

    def as_template_input(self) -> dict[str, Any]:
        """Return the call with its arguments parsed, as chat templates expect."""
        function = {"name": self.function.name, "arguments": parsed_arguments(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


_TEXT_CONTENT = Condition(
    {
        "properties": {
            "content": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"properties": {"type": {"const": "text"}}}},
                ]
            }
        },
        "required": ["content"],
    },
    lambda message: message.content is not None and not any(part.is_image for part in message.content),
)
_NO_CALLS = Condition(
    {"properties": {"tool_calls": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]}}},
    lambda message: not message.tool_calls,
)
_NO_RESULT = absent("tool_call_id")
_FROM_ASSISTANT = having("role", "assistant")
MESSAGE_CONTENT_KEYS = frozenset(
    {
        *(
            "refusal",
            "audio",
            "function_call",
            "text",
            "parts",
            "image",
            "images",
            "image_url",
            "input_audio",
        ),
        *("video", "videos", "video_url", "file", "files", "attachments", "documents", "tool_results"),
    }
)
"""Where other APIs and older forms of this one put what a message says."""


class ChatMessage(HistoryBody):
    """One turn of a conversation. An assistant message without content and calls is an empty text."""

    content_keys: ClassVar[frozenset[str]] = MESSAGE_CONTENT_KEYS

    rules = (
        Rule(
            any_of(
                all_of(
                    having("role", "system", "developer"), _TEXT_CONTENT, _NO_CALLS, absent("tool_call_id")
                ),
                all_of(having("role", "user"), present("content"), _NO_CALLS, _NO_RESULT),
                all_of(_FROM_ASSISTANT, _TEXT_CONTENT, _NO_RESULT),
                all_of(_FROM_ASSISTANT, absent("content", "tool_call_id")),
                all_of(having("role", "tool"), _TEXT_CONTENT, _NO_CALLS, present("tool_call_id")),
            ),
            Problem(
                "content",
                "is missing: send a string or content parts",
                any_of(_FROM_ASSISTANT, present("content")),
            ),
            Problem(
                "tool_calls",
                "is set; only assistant messages have tool calls",
                any_of(_FROM_ASSISTANT, _NO_CALLS),
            ),
            Problem("tool_call_id", "belongs to every tool message and to no other"),
        ),
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        ContentParts | None,
        BeforeValidator(text_as_part("text"), json_schema_input_type=str | ContentParts | None),
    ] = None
    name: str | None = Field(None, min_length=1, max_length=256)
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_PARTS)] | None = None
    tool_call_id: str | None = Field(None, min_length=1)
    reasoning_content: str | None = None

    def check(self, path: str = "") -> None:
        for i, part in enumerate(self.content or ()):
            here = f"{path}.content[{i}]"
            part.check(here)
            if part.is_image:
                check_may_have_image(self.role, here)
        super().check(path)

    def as_template_input(self) -> dict[str, Any]:
        """Return the message as `ChatTemplate.render` takes it."""
        # Many templates write a null content as "None"; next to calls, some ask whether it is null.
        message: dict[str, Any] = {"role": self.role, "content": None if self.tool_calls else ""}
        if self.content is not None:
            # Sent as a string, one text part also suits templates that know only strings.
            parts = [part.as_template_input() for part in self.content]
            is_text = len(parts) == 1 and not self.content[0].is_image
            message["content"] = parts[0]["text"] if is_text else parts
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_input() for call in self.tool_calls]
        for key in ("name", "tool_call_id", "reasoning_content"):
            if getattr(self, key) is not None:
                message[key] = getattr(self, key)
        return message


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def check_messages(messages: list[ChatMessage], path: str) -> None:
    """Check what each role must and must not carry.

    Raises:
        RequestError: names the message's field.
    """
    for i, message in enumerate(messages):
        message.check(f"{path}[{i}]")


def check_continuation(messages: list[ChatMessage], add_generation_prompt: bool | None) -> None:
    """Check that the last message can be continued.

    Raises:
        RequestError: names `continue_final_message`.
    """
    if add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other: send one of them",
            param="continue_final_message",
        )
    if messages[-1].role != "assistant":
        raise RequestError(
            "continue_final_message needs an assistant message at the end", param="continue_final_message"
        )
    if messages[-1].tool_calls:
        raise RequestError(
            "continue_final_message cannot continue a message with tool_calls, which end a turn: leave them "
            "out",
            param="continue_final_message",
        )
