"""The turns of a conversation and its system prompt, and their conversion to chat messages.

Like `chat`, and on the same threads. One turn may become several messages, because chat completions have a
message per tool result, and images only in messages of the user.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from vinfer.errors import RequestError
from vinfer.server.fields.anthropic.blocks import (
    Block,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    text_as_block,
)
from vinfer.server.fields.body_model import HistoryBody
from vinfer.server.fields.content_parts import ImageSource
from vinfer.server.fields.messages import MAX_PARTS
from vinfer.server.json_object import Json

Blocks = Annotated[list[Block], Field(max_length=MAX_PARTS)]
_BLOCKS_OF_ROLE = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
}

Placed = tuple[str, Block]
"""A block and its path in the request."""


def _content_of(role: str, kinds: Sequence[str]) -> Json:
    blocks = {"type": "array", "items": {"properties": {"type": {"enum": list(kinds)}}}}
    content = {"anyOf": [{"type": "string"}, blocks]}
    return {"properties": {"role": {"enum": [role]}, "content": content}, "required": ["role"]}


class Turn(HistoryBody):
    """One message: what the user, the model or the system said."""

    # `check_turns` checks it, and names the block.
    model_config = ConfigDict(
        json_schema_extra={"anyOf": [_content_of(*each) for each in _BLOCKS_OF_ROLE.items()]}
    )

    role: Literal["user", "assistant", "system"]
    content: Annotated[Blocks, BeforeValidator(text_as_block, json_schema_input_type=str | Blocks)]


SystemBlocks = Annotated[list[TextBlock], Field(max_length=MAX_PARTS)]
System = Annotated[SystemBlocks, BeforeValidator(text_as_block, json_schema_input_type=str | SystemBlocks)]


def check_turns(turns: Sequence[Turn]) -> None:
    """Check what each role may send, and that a call at the end has its result.

    Raises:
        RequestError: names the block.
    """
    for i, turn in enumerate(turns):
        for j, block in enumerate(turn.content):
            here = f"messages[{i}].content[{j}]"
            if block.type not in _BLOCKS_OF_ROLE[turn.role]:
                kinds = ", ".join(_BLOCKS_OF_ROLE[turn.role])
                raise RequestError(
                    f"{here}.type is {block.type!r} in a message of role {turn.role}; must be one of {kinds}",
                    param=f"{here}.type",
                )
            if isinstance(block, ToolUseBlock) and i == len(turns) - 1:
                raise RequestError(
                    f"{here} is a tool_use without its result: send a user message with a tool_result block",
                    param=here,
                )


def continues_answer(turns: Sequence[Turn]) -> bool:
    """Return whether the conversation ends with the beginning of the answer."""
    return turns[-1].role == "assistant"


def chat_messages(system: Sequence[TextBlock], turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return a conversation as the messages of a chat completion. Equal roles in a row are one turn."""
    messages: list[dict[str, Any]] = []
    if system:
        messages.append({"role": "system", "content": [block.as_chat() for block in system]})
    for role, blocks in _merged(turns):
        if role == "user":
            messages += _user_messages(blocks)
        elif role == "assistant":
            messages.append(_assistant_message(blocks))
        else:
            content = [block.as_chat() for _, block in blocks if isinstance(block, TextBlock)]
            messages.append({"role": role, "content": content or ""})
    return messages


def images_of(turns: Sequence[Turn]) -> list[ImageSource]:
    """Return the images of a conversation, in the order that they have in its chat messages."""
    return [
        image.image_source(here)
        for role, blocks in _merged(turns)
        if role == "user"
        for here, image in _images(blocks)
    ]


def _merged(turns: Sequence[Turn]) -> Iterator[tuple[str, list[Placed]]]:
    for role, group in itertools.groupby(enumerate(turns), key=lambda item: item[1].role):
        yield (
            role,
            [
                (f"messages[{i}].content[{j}]", block)
                for i, turn in group
                for j, block in enumerate(turn.content)
            ],
        )


def _user_messages(blocks: Sequence[Placed]) -> Iterator[dict[str, Any]]:
    """Yield a message per tool result, and one of the user for the images of results and what follows."""
    said: list[dict[str, Any]] = []
    is_said_by_user = False
    has_results = False
    for here, block in blocks:
        if isinstance(block, ToolResultBlock):
            if is_said_by_user:
                yield {"role": "user", "content": said}
                said = []
            yield block.as_chat()
            has_results = True
        is_said_by_user = not isinstance(block, ToolResultBlock)
        said += _parts((here, block))
    if said or not has_results:
        yield {"role": "user", "content": said or ""}


def _parts(placed: Placed) -> list[dict[str, Any]]:
    """Return what a block of the user's turn adds to a user message."""
    _, block = placed
    if isinstance(block, TextBlock):
        return [block.as_chat()]
    return [
        {"type": "image_url", "image_url": image.image_source(place)[0]} for place, image in _images([placed])
    ]


def _images(blocks: Iterable[Placed]) -> Iterator[tuple[str, ImageBlock]]:
    for here, block in blocks:
        if isinstance(block, ImageBlock):
            yield here, block
        elif isinstance(block, ToolResultBlock):
            for k, inner in enumerate(block.content or ()):
                if isinstance(inner, ImageBlock):
                    yield f"{here}.content[{k}]", inner


def _assistant_message(blocks: Sequence[Placed]) -> dict[str, Any]:
    texts = [block.as_chat() for _, block in blocks if isinstance(block, TextBlock)]
    thoughts = [block.thinking for _, block in blocks if isinstance(block, ThinkingBlock)]
    calls = [block.as_chat() for _, block in blocks if isinstance(block, ToolUseBlock)]
    message: dict[str, Any] = {"role": "assistant", "content": texts or (None if calls else "")}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(filter(None, thoughts))
    if calls:
        message["tool_calls"] = calls
    return message
