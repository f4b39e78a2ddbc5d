"""The applied fields of `/v1/responses`, typed and limited, and the chat completion that asks for the same.

Like `chat`, and on the same threads. What depends on the model is checked in the fields of that completion;
`RESPONSES.own_words` names them as this route does.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from vinfer.errors import RequestError
from vinfer.server.answers.response_types import (
    AnsweredFormat,
    AnsweredTool,
    AnsweredToolChoice,
    ReasoningEffort,
)
from vinfer.server.fields.body_model import Body
from vinfer.server.fields.conversation_form import ConversationBody, ConversationForm
from vinfer.server.fields.responses.input import InputItems, input_messages
from vinfer.server.fields.rules import NEEDS_SCHEMA_TYPE, ByType, OfType, all_of, inside
from vinfer.server.fields.sampling import (
    MAX_INT32,
    Penalty,
    Seed,
    Temperature,
    TopP,
)
from vinfer.server.fields.structured_outputs import IS_TEXT, MAX_DESCRIPTION_CHARS
from vinfer.server.fields.tools import (
    HAS_TOOLS,
    MAX_TOOLS,
    NAME_PATTERN,
    NO_CALL_ASKED_FOR,
    Parameters,
    ToolType,
    word_or_function,
)
from vinfer.server.fields.treatment import RESPONSES_OTHERS


def _no_summary(value: Any) -> Any:
    if value != "auto":
        raise PydanticCustomError(
            "summary", "asks for a summary; reasoning is returned in full: leave it out or send auto"
        )
    return value


# Parts of calls of OpenAI's own tools, of which there are none, and of reasoning, which is returned in full.
Included = Literal[
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "message.input_image.image_url",
]


class FlatTool(Body):
    """A function that the model may call; see `tools.Function`."""

    type: ToolType
    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """Return the tool in the form of chat completions."""
        return {"type": self.type, "function": self.model_dump(exclude={"type"})}

    def as_answer(self) -> AnsweredTool:
        """Return the tool as it was sent."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "strict": self.strict,
        }


class NamedFlatChoice(Body):
    """`tool_choice` as an object: this function, exactly once."""

    type: Literal["function"]
    name: str = Field(min_length=1)


class FlatToolChoice(Body):
    """Which tools must or may be called; `name` goes with the type `function` and no other."""

    type: Literal["none", "auto", "required", "function"]
    name: str | None = Field(None, min_length=1)

    def as_chat(self) -> Any:
        """Return the choice in the form of chat completions."""
        return self.type if self.name is None else {"type": self.type, "function": {"name": self.name}}

    def as_answer(self) -> AnsweredToolChoice:
        """Return the choice as it was sent."""
        if self.type == "function":
            assert self.name is not None
            return {"type": self.type, "name": self.name}
        return self.type


class TextFormat(Body):
    """`text.format`: the form of the answer. A schema is enforced whatever `strict` says."""

    rules = (
        ByType(
            OfType(("text", "json_object"), lacks=("name", "schema", "description", "strict")),
            OfType(("json_schema",), needs=("name", "schema")),
            advice=NEEDS_SCHEMA_TYPE,
        ),
    )

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(None, pattern=NAME_PATTERN)
    description: str | None = Field(None, max_length=MAX_DESCRIPTION_CHARS)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def as_chat(self) -> dict[str, Any]:
        """Return the format in the form of chat completions."""
        schema = self.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": self.type, "json_schema": schema} if schema else {"type": self.type}

    def as_answer(self) -> AnsweredFormat:
        """Return the format as it was sent."""
        answered: AnsweredFormat = {"type": self.type}
        if self.name is not None:
            answered["name"] = self.name
        if self.description is not None:
            answered["description"] = self.description
        if self.schema_ is not None:
            answered["schema"] = self.schema_
        if self.strict is not None:
            answered["strict"] = self.strict
        return answered


class TextOptions(Body):
    """`text`: how the answer is written. `medium` is a model's own verbosity."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ReasoningOptions(Body):
    """`reasoning`: how the model reasons before it answers."""

    effort: ReasoningEffort | None = None
    summary: Annotated[Literal["auto"], BeforeValidator(_no_summary)] | None = None


class ResponseStreamOptions(Body):
    """`stream_options`: a stream always ends with its usage."""

    include_obfuscation: bool = Field(False, description="Has no effect: events are never padded.")


class ResponsesFields(ConversationBody):
    """`POST /v1/responses`."""

    model_config = ConfigDict(
        # Checked by the chat completion of the same.
        json_schema_extra={
            "anyOf": [
                NO_CALL_ASKED_FOR.schema,
                all_of(HAS_TOOLS, inside("text", inside("format", IS_TEXT))).schema,
            ]
        }
    )

    model: str = Field(min_length=1)
    input: InputItems
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    stream: bool = False
    text: TextOptions = TextOptions()
    tools: Annotated[list[FlatTool], Field(max_length=MAX_TOOLS)] = []
    tool_choice: (
        Annotated[
            FlatToolChoice, word_or_function("name", '{"type": "function", "name": ...}', NamedFlatChoice)
        ]
        | None
    ) = None
    parallel_tool_calls: bool = True
    reasoning: ReasoningOptions = ReasoningOptions()
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    ignore_eos: bool = False
    include: list[Included] = Field([], description="Has no effect: an answer has no such parts.")
    stream_options: ResponseStreamOptions | None = None

    def check(self, path: str = "") -> None:
        if self.text.format is not None:
            self.text.format.check("text.format")

    def as_completion(self) -> dict[str, Any]:
        messages = input_messages(self.input)
        if not messages:
            raise RequestError("input contains only reasoning without content: send a message", param="input")
        if self.instructions is not None:
            messages.insert(0, {"role": "system", "content": self.instructions})
        return {
            "model": self.model,
            "messages": messages,
            "max_completion_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "ignore_eos": self.ignore_eos,
            # A response has one answer, whatever the config says.
            "n": 1,
            "response_format": None if self.text.format is None else self.text.format.as_chat(),
            "tools": [tool.as_chat() for tool in self.tools],
            "tool_choice": None if self.tool_choice is None else self.tool_choice.as_chat(),
            "parallel_tool_calls": self.parallel_tool_calls,
            "reasoning_effort": self.reasoning.effort,
        }


# What chat completions call a field, and what it is called here.
_NAMES = (
    (re.compile("response_format or structured_outputs"), "text.format"),
    (re.compile(r"\btools\[(\d+)\]\.function\."), r"tools[\1]."),
    (re.compile(r"\btool_choice\.function\."), "tool_choice."),
    (re.compile(r"\bresponse_format\.json_schema\."), "text.format."),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\bmax(_completion)?_tokens\b"), "max_output_tokens"),
    (re.compile(r"\breasoning_effort\b"), "reasoning.effort"),
    (re.compile(r"^messages\b"), "input"),
)

RESPONSES = ConversationForm(ResponsesFields, RESPONSES_OTHERS, _NAMES)
