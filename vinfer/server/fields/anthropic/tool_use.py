"""`tools` and `tool_choice` of the Messages API, typed.

Like `chat`, and on the same threads. They are checked as fields of the chat completion of the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from vinfer.server.fields.anthropic.blocks import CacheControl
from vinfer.server.fields.body_model import Body
from vinfer.server.fields.problems import only
from vinfer.server.fields.rules import ByType, OfType
from vinfer.server.fields.tools import MAX_TOOLS, NAME_PATTERN, Parameters

_custom_type = only(
    "custom",
    otherwise="is {word}, a tool that Anthropic runs or defines: describe a tool of your own with "
    "input_schema",
)


def _no_examples(value: Any) -> Any:
    if value not in (None, []):
        raise PydanticCustomError(
            "examples", "has examples, which prompts do not show: put them in description"
        )
    return None


def _not_deferred(value: bool | None) -> None:
    if value:
        raise PydanticCustomError("deferred", "is true; every tool is part of the prompt: leave it out")


def _direct(value: Any) -> Any:
    if value not in (None, ["direct"]):
        raise PydanticCustomError("callers", 'must be ["direct"]: only the model calls tools')
    return None


Nothing = Annotated[list[Any], Field(max_length=0)]
Direct = Annotated[list[Literal["direct"]], Field(min_length=1, max_length=1)]


class ToolDefinition(Body):
    """A tool that the model may call; `input_schema` is the JSON Schema of its arguments, an object."""

    type: Annotated[Literal["custom"] | None, _custom_type] = None
    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = None
    input_schema: Parameters
    strict: bool | None = None
    cache_control: CacheControl = None
    eager_input_streaming: Annotated[
        bool | None, Field(description="Accepted without effect: arguments are always streamed.")
    ] = None
    input_examples: Annotated[None, BeforeValidator(_no_examples, json_schema_input_type=Nothing | None)] = (
        None
    )
    # pydantic takes 0 and 0.0 for Literal[False].
    defer_loading: Annotated[
        bool | None, AfterValidator(_not_deferred), WithJsonSchema({"enum": [False, None]})
    ] = None
    allowed_callers: Annotated[None, BeforeValidator(_direct, json_schema_input_type=Direct | None)] = None

    def as_chat(self) -> dict[str, Any]:
        """Return the tool in the form of chat completions."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.input_schema,
            "strict": self.strict,
        }
        return {"type": "function", "function": function}


ToolDefinitions = Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)]

_CHAT_WORDS = {"auto": "auto", "any": "required", "none": "none"}


class ToolUseChoice(Body):
    """Which tools may or must be called; `name` goes with the type `tool` and no other."""

    rules = (ByType(OfType(tuple(_CHAT_WORDS), lacks=("name",)), OfType(("tool",), needs=("name",))),)

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(None, min_length=1)
    disable_parallel_tool_use: bool | None = None

    def as_chat(self) -> Any:
        """Return the choice in the form of chat completions."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return _CHAT_WORDS[self.type]
