"""`tools` and `tool_choice`: typed, limited, and checked against each other.

Knows neither how a model writes calls nor how an answer is constrained to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vinfer.errors import RequestError
from vinfer.server.fields.body_model import Body
from vinfer.server.fields.problems import only, shown
from vinfer.server.fields.rules import Condition
from vinfer.server.http.body import finite, parse_strictly

MAX_TOOLS = 128
NAME_PATTERN = r"^[a-zA-Z0-9_-]{1,128}$"
"""OpenAI's limit is 64 and Anthropic's 128, which the names of MCP servers and their tools need."""

_CHOICE_WORDS = ("none", "auto", "required")


Parameters = Annotated[dict[str, Any], Field(json_schema_extra={"properties": {"type": {"const": "object"}}})]


class Function(Body):
    """A function that the model may call; `parameters` is the JSON Schema of its arguments, an object.

    Without `parameters` it takes no arguments. A call that `tool_choice` requires always satisfies them,
    whatever `strict` says. A call that the model chooses to make does so if `strict` is true.
    """

    name: str = Field(pattern=NAME_PATTERN)
    description: str | None = None
    parameters: Parameters | None = None
    strict: bool | None = None


ToolType = Annotated[
    Literal["function"],
    only(
        "function",
        otherwise="is {word}, which only OpenAI's own server runs or reads: describe a tool of yours as a "
        "function",
    ),
]


class Tool(Body):
    """A tool; only functions are supported."""

    type: ToolType
    function: Function

    def as_template_input(self) -> dict[str, Any]:
        """Return the tool as chat templates know it."""
        function: dict[str, Any] = {
            "name": self.function.name,
            "description": self.function.description or "",
        }
        function["parameters"] = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


class NamedFunction(Body):
    """The function that must be called."""

    name: str = Field(min_length=1)


class ToolChoice(Body):
    """Which tools must or may be called; `function` goes with its type and no other."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = None


class NamedToolChoice(Body):
    """`tool_choice` as an object: this function, exactly once."""

    type: Literal["function"]
    function: NamedFunction


def word_or_function(key: str, named: str, schema: Any) -> BeforeValidator:
    """Return what parses `tool_choice`: pydantic would put the branch of a union into the error's path.

    Args:
        key: where an object says which function must be called.
        named: such an object, for messages.
        schema: its type.
    """

    def checked(value: Any) -> Any:
        if isinstance(value, str) and value in _CHOICE_WORDS:
            return {"type": value}
        is_named = isinstance(value, dict) and set(value) == {"type", key} and value[key] is not None
        if is_named and value["type"] == "function":
            return value
        raise PydanticCustomError(
            "tool_choice",
            "is {value}; must be none, auto, required or {named}",
            {"value": shown(value), "named": named},
        )

    return BeforeValidator(checked, json_schema_input_type=Literal["none", "auto", "required"] | schema)


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]
ToolChoiceField = Annotated[
    ToolChoice,
    word_or_function("function", '{"type": "function", "function": {"name": ...}}', NamedToolChoice),
]
NO_CALL_ASKED_FOR = Condition(
    {"properties": {"tool_choice": {"enum": [None, "none", "auto"]}}},
    lambda fields: fields.tool_choice is None or fields.tool_choice.type in ("none", "auto"),
)
HAS_TOOLS = Condition(
    {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]},
    lambda fields: bool(fields.tools),
)


def parsed_arguments(arguments: str) -> dict[str, Any] | str:
    """Parse the arguments of an earlier call; text that is not a JSON object stays text, as a model wrote it.

    So does JSON that is not allowed in a request body, such as deep nesting: chat templates write it again.
    Clients write a call without arguments as an empty text or null, which templates cannot iterate over.
    """
    if arguments.strip() in ("", "null"):
        return {}
    try:
        value = parse_strictly(arguments, parse_float=finite)
    except RequestError:
        return arguments
    return value if isinstance(value, dict) else arguments


def required_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> list[tuple[int, Tool]]:
    """Return the tools of which one must be called, with their positions; empty if none must."""
    if choice is None or choice.type in ("none", "auto"):
        return []
    return [
        (i, tool)
        for i, tool in enumerate(tools)
        if choice.function is None or choice.function.name == tool.function.name
    ]


def strict_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> list[tuple[int, Tool]]:
    """Return the tools whose calls are constrained although none is required, with their positions."""
    if choice is not None and choice.type != "auto":
        return []
    return [(i, tool) for i, tool in enumerate(tools) if tool.function.strict]


def check_tools(tools: Sequence[Tool]) -> None:
    """Check the tools against each other, and that their arguments are objects.

    Raises:
        RequestError: names the tool's field.
    """
    first_by_name: dict[str, int] = {}
    for i, tool in enumerate(tools):
        path = f"tools[{i}].function"
        first = first_by_name.setdefault(tool.function.name, i)
        if first != i:
            raise RequestError(
                f"{path}.name is {shown(tool.function.name)}, which is tools[{first}].function.name too: "
                "names must be unique",
                param=f"{path}.name",
            )
        kind = (tool.function.parameters or {}).get("type", "object")
        if kind != "object":
            raise RequestError(
                f"{path}.parameters.type is {shown(kind)}; must be 'object': arguments have names",
                param=f"{path}.parameters",
            )


def check_tool_choice(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
    """Check that the function that must be called is one of the tools.

    Raises:
        RequestError: it is not.
    """
    if choice is not None and choice.function is not None and not required_tools(tools, choice):
        raise RequestError(
            f"tool_choice.function.name is {shown(choice.function.name)}, which is not in tools: name one of "
            "them",
            param="tool_choice.function.name",
        )
