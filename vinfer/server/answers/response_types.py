"""The body and the events of `/v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypeAliasType

from vinfer.server.answers.bodies import Answer, Count, Nothing

ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]
ItemEventType = Literal["response.output_item.added", "response.output_item.done"]
LifecycleType = Literal[
    "response.created",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]


class OutputText(Answer):
    """Text of a message."""

    type: Literal["output_text"]
    text: str
    annotations: Nothing
    logprobs: Nothing


class ReasoningText(Answer):
    """Text of the model's reasoning."""

    type: Literal["reasoning_text"]
    text: str


class OutputMessage(Answer):
    """A message from the model; it has no content when it begins."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: ItemStatus
    content: Annotated[list[OutputText], Field(max_length=1)]


class OutputReasoning(Answer):
    """The model's reasoning before its next item."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: Nothing
    content: Annotated[list[ReasoningText], Field(max_length=1)]


class OutputCall(Answer):
    """A function that the model calls; `arguments` is JSON text as the model wrote it."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = Annotated[OutputMessage | OutputReasoning | OutputCall, Field(discriminator="type")]


class ResponseFailure(Answer):
    """Why a response failed."""

    code: Literal["server_error"]
    message: str


class IncompleteDetails(Answer):
    """Why a response ended early: it ran out of tokens."""

    reason: Literal["max_output_tokens"]


class AnsweredReasoning(Answer):
    """`reasoning` of the request."""

    effort: ReasoningEffort | None
    summary: Literal["auto"] | None


class AnsweredFormat(Answer):
    """`text.format` of the request."""

    type: Literal["text", "json_object", "json_schema"]
    name: NotRequired[str]
    description: NotRequired[str]
    schema: NotRequired[dict[str, Any]]
    strict: NotRequired[bool]


class AnsweredText(Answer):
    """`text` of the request."""

    format: AnsweredFormat


class AnsweredTool(Answer):
    """One of `tools` of the request."""

    type: Literal["function"]
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool | None


class AnsweredChoice(Answer):
    """`tool_choice` of the request, if it names a function."""

    type: Literal["function"]
    name: str


AnsweredToolChoice = Literal["none", "auto", "required"] | AnsweredChoice


class InputTokensDetails(Answer):
    """Details of the input's tokens."""

    cached_tokens: Count
    cache_write_tokens: Count


class OutputTokensDetails(Answer):
    """Details of the output's tokens."""

    reasoning_tokens: Annotated[
        Count, Field(description="Tokens of the reasoning, counted as a text by itself.")
    ]


class ResponseUsage(Answer):
    """Tokens of one response."""

    input_tokens: Count
    input_tokens_details: InputTokensDetails
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class Response(Answer):
    """A response, with the settings of its request; it is not stored."""

    id: str
    object: Literal["response"]
    created_at: Count
    completed_at: Count | None
    status: ResponseStatus
    background: Annotated[bool, Field(description="Always false.")]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: Count | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: Annotated[str | None, Field(description="Always null.")]
    presence_penalty: float
    frequency_penalty: float
    reasoning: AnsweredReasoning
    store: Annotated[bool, Field(description="Always false.")]
    service_tier: Literal["default"]
    safety_identifier: Annotated[str | None, Field(description="Always null.")]
    prompt_cache_key: Annotated[str | None, Field(description="Always null.")]
    max_tool_calls: Annotated[Count | None, Field(description="Always null.")]
    temperature: float
    text: AnsweredText
    tool_choice: AnsweredToolChoice
    tools: list[AnsweredTool]
    top_logprobs: Literal[0]
    top_p: float
    truncation: Literal["disabled"]
    usage: Annotated[ResponseUsage | None, Field(description="Null until the response has ended.")]


class NumberedEvent(Answer):
    """Every event."""

    sequence_number: Count


class LifecycleEvent(NumberedEvent):
    """The response so far; the last event is one of these."""

    type: LifecycleType
    response: Response


class ItemEvent(NumberedEvent):
    """An item has begun or ended."""

    type: ItemEventType
    output_index: Count
    item: OutputItem


class EventOfItem(NumberedEvent):
    """Events within an item."""

    item_id: str
    output_index: Count


class EventOfPart(EventOfItem):
    """Events within a part of an item."""

    content_index: Count


class PartEvent(EventOfItem):
    """A part of an item has begun or ended."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: Count
    part: Annotated[OutputText | ReasoningText, Field(discriminator="type")]


class TextDelta(EventOfItem):
    """More text of a message."""

    type: Literal["response.output_text.delta"]
    content_index: Count
    delta: str
    logprobs: Nothing


class TextDone(EventOfItem):
    """The whole text of a message."""

    type: Literal["response.output_text.done"]
    content_index: Count
    text: str
    logprobs: Nothing


class ReasoningDelta(EventOfItem):
    """More text of the reasoning."""

    type: Literal["response.reasoning_text.delta"]
    content_index: Count
    delta: str


class ReasoningDone(EventOfItem):
    """The whole text of the reasoning."""

    type: Literal["response.reasoning_text.done"]
    content_index: Count
    text: str


class ArgumentsDelta(EventOfItem):
    """More of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(EventOfItem):
    """All of a call's arguments."""

    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


_Events = (
    LifecycleEvent
    | ItemEvent
    | PartEvent
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
ResponseEvent = TypeAliasType(
    "ResponseEvent",
    Annotated[
        _Events,
        Field(discriminator="type", title="ResponseEvent", description="One event of a streamed response."),
    ],
)
