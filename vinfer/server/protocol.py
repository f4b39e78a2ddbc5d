"""The applied request fields of each route, typed and bounded; what else a body holds is `fields`' matter.

Parsed on the event loop or, for large bodies, in a worker thread. Bounds that depend on the model or
the config (vocabulary, max_model_len, max_n) are checked in `sampling` and `prompts`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from vinfer.engine.request import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS
from vinfer.errors import RequestError
from vinfer.server.body_model import Body
from vinfer.server.content_parts import ContentPart
from vinfer.server.field_errors import request_error
from vinfer.server.fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    COUNT_FIELDS,
    FieldRule,
    applied_fields,
)
from vinfer.server.schema_rules import absent, all_of, any_of, having, present
from vinfer.server.structured_outputs import ResponseFormat, StructuredOutputs, binds_form, check_one_form
from vinfer.server.template_kwargs import ReasoningEffort, TemplateKwargs
from vinfer.server.tools import (
    Tool,
    ToolChoiceField,
    Tools,
    callable_tools,
    check_tool_choice,
    check_tools,
    parsed_arguments,
)

MAX_INT32 = 2**31 - 1
MAX_STOP_STRINGS = 4
MAX_STOP_STRING_CHARS = 1024
MAX_CACHE_SALT_CHARS = 256
MAX_PROMPTS = 256
"""Prompts of `/v1/completions` or inputs of `/v1/embeddings` in one request; more are refused before they
are tokenized."""


_TOKEN_ID_KEY = re.compile(r"^(0|[1-9][0-9]{0,9})\Z")


def _one_as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _key_as_token_id(key: Any) -> Any:
    """JSON has only string keys; `logit_bias` means token ids by them."""
    if isinstance(key, str) and _TOKEN_ID_KEY.match(key):
        return int(key)
    raise PydanticCustomError("token_id", "is not a token id: use the id's decimal digits as the key")


def _text_as_part(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_STRING_CHARS)]
TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]
Temperature = Annotated[float, Field(ge=0, le=2)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**64 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]
TokenIdKey = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,9})$")]


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


_NO: dict[str, Any] = {"enum": [None, False]}
TEXT_OR_NOTHING = {"anyOf": [{"type": "null"}, {"properties": {"type": {"const": "text"}}}]}
_UNBOUND = all_of(absent("structured_outputs"), {"properties": {"response_format": TEXT_OR_NOTHING}})
_BOUND_TO_ONE_FORM = (
    all_of(absent("structured_outputs"), {"properties": {"ignore_eos": _NO}}),
    {"properties": {"response_format": TEXT_OR_NOTHING, "ignore_eos": _NO}},
)
_STREAM_OPTIONS = any_of(absent("stream_options"), having("stream", True))


class SamplingFields(Body):
    """What chat and plain completions share; None stands for "left out"."""

    model: str = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    # Clients of other servers send -1 for "off" as well as 0.
    top_k: int | None = Field(None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    n: int | None = Field(None, ge=1)
    seed: Seed | None = None
    stop: Annotated[
        StopStrings, BeforeValidator(_one_as_list, json_schema_input_type=StopString | StopStrings)
    ] = []
    stop_token_ids: list[TokenId] = Field([], max_length=MAX_STOP_TOKEN_IDS)
    logit_bias: dict[
        Annotated[int, BeforeValidator(_key_as_token_id, json_schema_input_type=TokenIdKey)],
        Annotated[float, Field(ge=-100, le=100)],
    ] = Field({}, max_length=MAX_LOGIT_BIAS, json_schema_extra={"additionalProperties": False})
    min_tokens: int = Field(0, ge=0, le=MAX_INT32)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    priority: int = Field(0, ge=-MAX_INT32, le=MAX_INT32)
    cache_salt: str | None = Field(None, min_length=1, max_length=MAX_CACHE_SALT_CHARS)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def includes_continuous_usage(self) -> bool:
        """Whether every chunk of a stream carries the usage so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats


ContentParts = Annotated[list[ContentPart], Field(min_length=1)]


class CalledFunction(Body):
    """A function the model called in an earlier turn; `arguments` is JSON text."""

    name: str = Field(min_length=1)
    arguments: str


class ToolCall(Body):
    """A tool call of an earlier assistant turn."""

    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: CalledFunction

    def as_template_input(self) -> dict[str, Any]:
        """Give the call with its arguments parsed, as chat templates are written for."""
        function = {"name": self.function.name, "arguments": parsed_arguments(self.function.arguments)}
        return {"id": self.id, "type": self.type, "function": function}


_TEXT_CONTENT = {
    "properties": {
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"properties": {"type": {"const": "text"}}}},
            ]
        }
    },
    "required": ["content"],
}
_NO_CALLS = {"properties": {"tool_calls": {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]}}}
_CALLS = {"properties": {"tool_calls": {"type": "array", "minItems": 1}}, "required": ["tool_calls"]}


class ChatMessage(Body):
    """One turn of a conversation.

    Clients send earlier answers back as they got them, so their empty fields are known here too.
    """

    model_config = ConfigDict(
        json_schema_extra=any_of(
            all_of(having("role", "system", "developer"), _TEXT_CONTENT, _NO_CALLS, absent("tool_call_id")),
            all_of(having("role", "user"), present("content"), _NO_CALLS, absent("tool_call_id")),
            all_of(having("role", "assistant"), _TEXT_CONTENT, absent("tool_call_id")),
            all_of(having("role", "assistant"), absent("content", "tool_call_id"), _CALLS),
            all_of(having("role", "tool"), _TEXT_CONTENT, _NO_CALLS, present("tool_call_id")),
        )
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        ContentParts | None, BeforeValidator(_text_as_part, json_schema_input_type=str | ContentParts | None)
    ] = None
    name: str | None = Field(None, min_length=1, max_length=256)
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = Field(None, min_length=1)
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None

    def as_template_input(self) -> dict[str, Any]:
        """Give the message as `ChatTemplate.render` takes it."""
        message: dict[str, Any] = {"role": self.role, "content": None}
        if self.content is not None:
            # To a template that only knows strings, one text part and a string are the same thing.
            parts = [part.as_template_input() for part in self.content]
            is_text = len(parts) == 1 and not self.content[0].is_image
            message["content"] = parts[0]["text"] if is_text else parts
        if self.tool_calls:
            message["tool_calls"] = [call.as_template_input() for call in self.tool_calls]
        for key in ("name", "tool_call_id", "reasoning_content"):
            if getattr(self, key) is not None:
                message[key] = getattr(self, key)
        return message


_NO_CALL_ASKED_FOR = {"properties": {"tool_choice": {"enum": [None, "none", "auto"]}}}


class ChatFields(SamplingFields):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                _STREAM_OPTIONS,
                any_of(absent("top_logprobs"), having("logprobs", True)),
                any_of(
                    *(all_of(form, _NO_CALL_ASKED_FOR) for form in (_UNBOUND, *_BOUND_TO_ONE_FORM)),
                    all_of(
                        _UNBOUND,
                        {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]},
                        {"properties": {"ignore_eos": _NO}},
                    ),
                ),
            ]
        }
    )

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] = ["text"]
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    chat_template_kwargs: TemplateKwargs = {}
    reasoning_effort: ReasoningEffort | None = None
    tools: Tools = []
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool = True

    @property
    def callable_tools(self) -> list[Tool]:
        """The tools that this answer may call."""
        return callable_tools(self.tools, self.tool_choice)


_TOKEN_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}


def prompts_schema(text: dict[str, Any]) -> dict[str, Any]:
    """Describe a text, token ids, or several of these; `text` describes the one.

    What is sent is taken apart in `prompts`.
    """
    return {
        "anyOf": [
            text,
            _TOKEN_IDS_SCHEMA,
            {
                "type": "array",
                "items": {"anyOf": [text, _TOKEN_IDS_SCHEMA]},
                "minItems": 1,
                "maxItems": MAX_PROMPTS,
            },
        ]
    }


class CompletionFields(SamplingFields):
    """`POST /v1/completions`; `prompt` is taken apart in `prompts`, and max_tokens 0 goes with echo."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [
                _STREAM_OPTIONS,
                any_of(_UNBOUND, *_BOUND_TO_ONE_FORM),
                any_of(
                    {"properties": {"max_tokens": {"anyOf": [{"type": "null"}, {"minimum": 1}]}}},
                    having("echo", True),
                ),
            ]
        }
    )

    max_tokens: int | None = Field(None, ge=0, le=MAX_INT32)

    prompt: Annotated[Any, WithJsonSchema(prompts_schema({"type": "string"}))]
    best_of: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool = False

    @property
    def scores_prompt(self) -> bool:
        """Whether the logprobs of the prompt's own tokens are wanted."""
        return self.echo and self.logprobs is not None


class CountText(Body):
    """`POST /v1/count_tokens` of a text."""

    model: str = Field(min_length=1)
    conversation: str


class CountMessages(Body):
    """`POST /v1/count_tokens` of a conversation."""

    model: str = Field(min_length=1)
    conversation: list[ChatMessage] = Field(min_length=1)


Unknown = Literal["refuse", "ignore"]
BodyT = TypeVar("BodyT", bound=Body)


@dataclasses.dataclass(frozen=True, slots=True)
class RequestForm(Generic[BodyT]):
    """One form that a route's body may have: its applied fields, typed, and the rule of every field."""

    fields: type[BodyT]
    rules: Mapping[str, FieldRule]

    def parse(self, body: Mapping[str, Any], unknown: Unknown) -> BodyT:
        """Check each field by itself; what fields ask of each other is the route's matter.

        Raises:
            RequestError: names the first bad field.
        """
        extra: Literal["forbid", "ignore"] = "forbid" if unknown == "refuse" else "ignore"
        try:
            return self.fields.model_validate(applied_fields(body, self.rules, unknown), extra=extra)
        except ValidationError as error:
            raise request_error(error) from None


CHAT = RequestForm(ChatFields, CHAT_FIELDS)
COMPLETION = RequestForm(CompletionFields, COMPLETION_FIELDS)
COUNT_TEXT = RequestForm(CountText, COUNT_FIELDS)
COUNT_MESSAGES = RequestForm(CountMessages, COUNT_FIELDS)


def parse_chat(body: Mapping[str, Any], unknown: Unknown) -> ChatFields:
    """Check the body of a chat completion.

    Raises:
        RequestError: names the first bad field.
    """
    fields = CHAT.parse(body, unknown)
    check_messages(fields.messages, "messages")
    _check_sampling(fields)
    both = (fields.max_tokens, fields.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise RequestError(
            f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}: send one of them",
            param="max_tokens",
        )
    if fields.top_logprobs is not None and not fields.logprobs:
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    if fields.continue_final_message:
        check_continuation(fields.messages, fields.add_generation_prompt)
    check_tools(fields.tools)
    check_tool_choice(
        fields.tools,
        fields.tool_choice,
        binds_form=binds_form(fields.response_format, fields.structured_outputs),
        ignore_eos=fields.ignore_eos,
    )
    return fields


def parse_completion(body: Mapping[str, Any], unknown: Unknown) -> CompletionFields:
    """Check the body of a plain completion, all but its prompt.

    Raises:
        RequestError: names the first bad field.
    """
    fields = COMPLETION.parse(body, unknown)
    _check_sampling(fields)
    if fields.max_tokens == 0 and not fields.echo:
        raise RequestError(
            "max_tokens is 0; must be at least 1 without echo: true, which answers with the prompt",
            param="max_tokens",
        )
    return fields


def parse_count(body: Mapping[str, Any], unknown: Unknown) -> CountText | CountMessages:
    """Check the body of a token count.

    Raises:
        RequestError: names the first bad field.
    """
    # Told apart here: pydantic would put the branch of a union into the error's path.
    if isinstance(body.get("conversation"), str):
        return COUNT_TEXT.parse(body, unknown)
    fields = COUNT_MESSAGES.parse(body, unknown)
    check_messages(fields.conversation, "conversation")
    return fields


def check_messages(messages: list[ChatMessage], path: str) -> None:
    """Check what each role must and must not carry.

    Raises:
        RequestError: names the message's field.
    """
    for i, message in enumerate(messages):
        here = f"{path}[{i}]"
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise RequestError(
                f"{here}.content is missing: send a string or content parts", param=f"{here}.content"
            )
        for j, part in enumerate(message.content or ()):
            part.check(f"{here}.content[{j}]", message.role)
        if message.tool_calls and message.role != "assistant":
            raise RequestError(
                f"{here}.tool_calls is set; only assistant messages have tool calls",
                param=f"{here}.tool_calls",
            )
        if (message.tool_call_id is not None) != (message.role == "tool"):
            raise RequestError(
                f"{here}.tool_call_id belongs to every tool message and to no other",
                param=f"{here}.tool_call_id",
            )


def check_continuation(messages: list[ChatMessage], add_generation_prompt: bool | None) -> None:
    """Check that the last message can be gone on with.

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


def _check_sampling(fields: SamplingFields) -> None:
    if fields.stream_options is not None and not fields.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    check_one_form(fields.response_format, fields.structured_outputs, ignore_eos=fields.ignore_eos)
