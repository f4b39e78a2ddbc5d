"""The types of the body and the events of `/v1/responses`, from which `/openapi.json` is built.

See `answers` for the bodies of the other routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel

from vinfer.server.document.answers import Answer, Count, Nothing

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


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

    effort: Effort | None
    summary: Literal["auto"] | None


class AnsweredFormat(Answer):
    """`text.format` of the request."""

    type: Literal["text", "json_object", "json_schema"]
    name: str = ""
    description: str = ""
    schema_: dict[str, Any] = Field({}, alias="schema")
    strict: bool = False


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


class InputTokensDetails(Answer):
    """Details of the input's tokens."""

    cached_tokens: Count
    cache_write_tokens: Count


class OutputTokensDetails(Answer):
    """Details of the output's tokens."""

    reasoning_tokens: Count = Field(description="Tokens of the reasoning, counted as a text by itself.")


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
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: bool = Field(description="Always false.")
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: Count | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None = Field(description="Always null.")
    presence_penalty: float
    frequency_penalty: float
    reasoning: AnsweredReasoning
    store: bool = Field(description="Always false.")
    service_tier: Literal["default"]
    safety_identifier: str | None = Field(description="Always null.")
    prompt_cache_key: str | None = Field(description="Always null.")
    max_tool_calls: Count | None = Field(description="Always null.")
    temperature: float
    text: AnsweredText
    tool_choice: Literal["none", "auto", "required"] | AnsweredChoice
    tools: list[AnsweredTool]
    top_logprobs: Literal[0]
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None = Field(description="Null until the response has ended.")


class _Event(Answer):
    sequence_number: Count


class LifecycleEvent(_Event):
    """The response so far; the last event is one of these."""

    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: Response


class ItemEvent(_Event):
    """An item has begun or ended."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: Count
    item: OutputItem


class _OfItem(_Event):
    item_id: str
    output_index: Count


class PartEvent(_OfItem):
    """A part of an item has begun or ended."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: Count
    part: Annotated[OutputText | ReasoningText, Field(discriminator="type")]


class TextDelta(_OfItem):
    """More text of a message."""

    type: Literal["response.output_text.delta"]
    content_index: Count
    delta: str
    logprobs: Nothing


class TextDone(_OfItem):
    """The whole text of a message."""

    type: Literal["response.output_text.done"]
    content_index: Count
    text: str
    logprobs: Nothing


class ReasoningDelta(_OfItem):
    """More text of the reasoning."""

    type: Literal["response.reasoning_text.delta"]
    content_index: Count
    delta: str


class ReasoningDone(_OfItem):
    """The whole text of the reasoning."""

    type: Literal["response.reasoning_text.done"]
    content_index: Count
    text: str


class ArgumentsDelta(_OfItem):
    """More of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDone(_OfItem):
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


class ResponseEvent(RootModel[Annotated[_Events, Field(discriminator="type")]]):
    """One event of a streamed response."""
