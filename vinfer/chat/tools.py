"""Functions of a Python file as tools of a chat: their schemas, and their calls.

The file is the user's own and runs in this process. Knows no terminals and no HTTP.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from vinfer.chat.answer import ToolCall
from vinfer.errors import ConfigError

_MODULE = "vinfer_chat_tools"


class Tool:
    """One function; its parameters must have names, and may have annotations and defaults."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self._function = function
        hints = typing.get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {
            name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
            for name, parameter in inspect.signature(function).parameters.items()
        }
        self._arguments: type[BaseModel] = create_model(self.name, **fields)

    def as_field(self) -> dict[str, Any]:
        """Return the tool as an entry of the field `tools`."""
        function = {
            "name": self.name,
            "description": inspect.getdoc(self._function) or "",
            "parameters": self._arguments.model_json_schema(),
        }
        return {"type": "function", "function": function}

    def call(self, arguments: str) -> str:
        """Call the function with JSON arguments, and return its result as a text, or as JSON.

        What goes wrong is a text too, for the model to read.
        """
        try:
            checked = self._arguments.model_validate_json(arguments or "{}")
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
            )
            return f"error: the arguments are wrong: {problems}"
        try:
            result = self._function(**{name: getattr(checked, name) for name in type(checked).model_fields})
        except Exception as error:  # noqa: BLE001 - the user's own function may raise anything
            return f"error: {type(error).__name__}: {error}"
        return result if isinstance(result, str) else json.dumps(result, default=str)


def read_tools(path: Path) -> dict[str, Tool]:
    """Run a Python file and return its public functions by name.

    Raises:
        ConfigError: it cannot be read, fails, or has no function that can be a tool.
    """
    path = path.expanduser()
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"tools {path}: there is no such Python file: give the path of a .py file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        functions = [
            function
            for name, function in inspect.getmembers(module, inspect.isfunction)
            if function.__module__ == _MODULE and not name.startswith("_")
        ]
        tools = {function.__name__: Tool(function) for function in functions}
    except Exception as error:
        raise ConfigError(f"tools {path}: {type(error).__name__}: {error}: correct the file") from error
    if not tools:
        raise ConfigError(f"tools {path}: it has no function: define one whose name begins with a letter")
    return tools


def answer_of(call: ToolCall, tools: Mapping[str, Tool], asks: Callable[[str], bool]) -> str:
    """Return what the model is told about a call.

    Args:
        asks: whether the user allows what the text describes.
    """
    tool = tools.get(call.name)
    if tool is None:
        return f"error: there is no tool {call.name}; the tools are {', '.join(tools)}"
    if not asks(f"{call.name}({call.arguments})"):
        return "error: the user does not allow this call"
    return tool.call(call.arguments)
