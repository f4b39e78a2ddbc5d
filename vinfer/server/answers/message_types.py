"""Bodies and events of `/v1/messages`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypeAliasType

from vinfer.server.answers.bodies import Answer, Count, Nothing

AnthropicErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "timeout_error",
    "request_too_large",
    "rate_limit_error",
    "overloaded_error",
    "api_error",
]
AnthropicErrorCode = Literal["thread_unsupported_request"]
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class AnthropicErrorDetails(Answer):
    """A code by which clients know what to do instead."""

    error_code: AnthropicErrorCode


class AnthropicError(Answer):
    """What went wrong."""

    type: AnthropicErrorType
    message: str
    details: NotRequired[
        Annotated[AnthropicErrorDetails | None, Field(description="Left out for most errors.")]
    ]


class AnthropicErrorBody(Answer):
    """The body of every error of these routes, in Anthropic's format."""

    type: Literal["error"]
    error: AnthropicError
    request_id: str


class InputTokens(Answer):
    """The number of tokens of a conversation's prompt."""

    input_tokens: Count


class MessageText(Answer):
    """Text of a message."""

    type: Literal["text"]
    text: str
    citations: Annotated[Nothing | None, Field(description="Always null.")]


class MessageThinking(Answer):
    """The model's reasoning, empty if it is omitted; the signature is a digest of the text."""

    type: Literal["thinking"]
    thinking: str
    signature: str


class MessageCaller(Answer):
    """Who calls a tool: always the model."""

    type: Literal["direct"]


class MessageToolUse(Answer):
    """A tool that the model calls; `input` is empty if the call was cut off."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: MessageCaller


MessageBlock = Annotated[MessageText | MessageThinking | MessageToolUse, Field(discriminator="type")]


class MessageUsage(Answer):
    """Tokens of one message. The prompt has those of all three kinds of input together."""

    input_tokens: Count
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: Count
    output_tokens: Count
    cache_creation: Annotated[dict[str, int] | None, Field(description="Always null.")]
    output_tokens_details: Annotated[dict[str, int] | None, Field(description="Always null.")]
    server_tool_use: Annotated[dict[str, int] | None, Field(description="Always null.")]
    inference_geo: Annotated[str | None, Field(description="Always null.")]
    service_tier: Literal["standard"]


class Message(Answer):
    """A message from the model; its stop reason is null while it is streamed."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[MessageBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    stop_details: Annotated[dict[str, str] | None, Field(description="Always null.")]
    container: Annotated[dict[str, str] | None, Field(description="Always null.")]
    usage: MessageUsage


class MessageStart(Answer):
    """The message has begun."""

    type: Literal["message_start"]
    message: Message


class BlockStart(Answer):
    """A block has begun."""

    type: Literal["content_block_start"]
    index: Count
    content_block: MessageBlock


class BlockText(Answer):
    """More text."""

    type: Literal["text_delta"]
    text: str


class BlockThinking(Answer):
    """More reasoning."""

    type: Literal["thinking_delta"]
    thinking: str


class BlockSignature(Answer):
    """The signature of the reasoning."""

    type: Literal["signature_delta"]
    signature: str


class BlockInput(Answer):
    """More of a call's arguments, as JSON text."""

    type: Literal["input_json_delta"]
    partial_json: str


BlockGain = BlockText | BlockThinking | BlockSignature | BlockInput


class BlockDelta(Answer):
    """A block has gained something."""

    type: Literal["content_block_delta"]
    index: Count
    delta: Annotated[BlockGain, Field(discriminator="type")]


class BlockStop(Answer):
    """A block has ended."""

    type: Literal["content_block_stop"]
    index: Count


class MessageEnd(Answer):
    """Why the message ended."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageFinish(Answer):
    """Why the message ended, and its tokens."""

    type: Literal["message_delta"]
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(Answer):
    """The message has ended."""

    type: Literal["message_stop"]


class Ping(Answer):
    """Keeps the connection open."""

    type: Literal["ping"]


_Events = (
    MessageStart
    | BlockStart
    | BlockDelta
    | BlockStop
    | MessageFinish
    | MessageStop
    | Ping
    | AnthropicErrorBody
)
MessageEvent = TypeAliasType(
    "MessageEvent",
    Annotated[
        _Events,
        Field(discriminator="type", title="MessageEvent", description="One event of a streamed message."),
    ],
)
