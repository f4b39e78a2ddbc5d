"""The content blocks of a conversation, typed: text, images, tool calls and their results, reasoning.

Like `chat`, and on the same threads. `turns` converts them to chat messages.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag

from vinfer.server.fields.body_model import HistoryBody
from vinfer.server.fields.content_parts import ImageSource, NonEmpty
from vinfer.server.fields.problems import by_type, only, string_or_array

_BLOCK_TYPES = ("text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking")


# A block of an unknown type is parsed as text.
_text_type = only(
    "text",
    otherwise=f"is {{word}}; must be one of {', '.join(_BLOCK_TYPES)}: send other content as text",
)


def text_as_block(content: Any) -> Any:
    """Return content that is a string as one text block."""
    return [{"type": "text", "text": content}] if isinstance(string_or_array(content), str) else content


CacheControl = Annotated[
    Any, Field(description="Accepted without effect: equal beginnings are shared anyway.")
]


class TextBlock(HistoryBody):
    """Text."""

    type: Annotated[Literal["text"], _text_type]
    text: str
    cache_control: CacheControl = None

    def as_chat(self) -> dict[str, Any]:
        """Return the block as a content part."""
        return {"type": "text", "text": self.text}


# A source of an unknown type is parsed as base64.
_source_type = only("base64", otherwise="is {word}; must be base64 or url: vinfer keeps no files")


class Base64Source(HistoryBody):
    """An image's file in base64."""

    type: Annotated[Literal["base64"], _source_type]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: NonEmpty


class UrlSource(HistoryBody):
    """An image's http(s) URL."""

    type: Literal["url"]
    url: NonEmpty


class ImageBlock(HistoryBody):
    """An image."""

    type: Literal["image"]
    source: Annotated[
        Annotated[Base64Source, Tag("[base64]")] | Annotated[UrlSource, Tag("[url]")],
        by_type("url", otherwise="base64"),
    ]
    cache_control: CacheControl = None

    def image_source(self, here: str) -> ImageSource:
        """Return the image's URL and the path of the field that holds it; `here` is the block's own path."""
        source = self.source
        if isinstance(source, UrlSource):
            return source.url, f"{here}.source.url"
        return f"data:{source.media_type};base64,{source.data}", f"{here}.source.data"


class ToolUseBlock(HistoryBody):
    """A tool that the model called."""

    type: Literal["tool_use"]
    id: NonEmpty
    name: NonEmpty
    input: dict[str, Any]
    caller: Annotated[Any, Field(description="Accepted without effect: only the model calls tools.")] = None
    cache_control: CacheControl = None

    def as_chat(self) -> dict[str, Any]:
        """Return the block as a tool call."""
        arguments = json.dumps(self.input, ensure_ascii=False)
        return {"id": self.id, "function": {"name": self.name, "arguments": arguments}}


ResultBlocks = list[
    Annotated[
        Annotated[TextBlock, Tag("[text]")] | Annotated[ImageBlock, Tag("[image]")],
        by_type("image", otherwise="text"),
    ]
]


class ToolResultBlock(HistoryBody):
    """What a called tool returned; `is_error` says that it failed."""

    type: Literal["tool_result"]
    tool_use_id: NonEmpty
    content: Annotated[
        ResultBlocks | None, BeforeValidator(text_as_block, json_schema_input_type=str | ResultBlocks | None)
    ] = None
    is_error: bool | None = None
    cache_control: CacheControl = None

    def as_chat(self) -> dict[str, Any]:
        """Return the text of the block as a tool's message. An error begins with the word."""
        texts = [block.text for block in self.content or () if isinstance(block, TextBlock)]
        if self.is_error:
            texts = [f"Error: {texts[0]}", *texts[1:]] if texts else ["Error"]
        content = [{"type": "text", "text": text} for text in texts]
        return {"role": "tool", "content": content or "", "tool_call_id": self.tool_use_id}


class ThinkingBlock(HistoryBody):
    """The model's reasoning before it answered. The signature is not checked."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None
    cache_control: CacheControl = None


class RedactedThinkingBlock(HistoryBody):
    """Reasoning that only Anthropic's models can read; it is not part of the prompt."""

    type: Literal["redacted_thinking"]
    data: str
    cache_control: CacheControl = None


Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ImageBlock, Tag("[image]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ToolResultBlock, Tag("[tool_result]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[RedactedThinkingBlock, Tag("[redacted_thinking]")],
    by_type(*_BLOCK_TYPES, otherwise="text"),
]
