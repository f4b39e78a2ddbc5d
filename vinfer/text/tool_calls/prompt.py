"""Explains tools in text, in the model's format, for models whose chat template does not know tools.

Pure functions of messages as a chat template takes them. The words around the tools are those that the
Hermes and Qwen models were trained with, because most models have seen them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vinfer.text.tool_calls.formats import ToolFormat

Message = dict[str, Any]

_BEFORE_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_HERMES_TAGS = " within <tool_call></tool_call> XML tags"


def with_tools_as_text(
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    tool_format: ToolFormat,
    *,
    shows_system: bool,
) -> list[Message]:
    """Put tools and calls into plain messages: calls into the assistant's text, results into a user turn.

    Args:
        tools: may be empty; earlier calls are rewritten anyway.
        shows_system: whether the template takes a system message; otherwise the tools go into the first user
            turn.
    """
    plain: list[Message] = []
    follows_result = False
    for message in messages:
        is_result = message["role"] == "tool"
        if is_result:
            result = f"<tool_response>\n{_text(message['content'])}\n</tool_response>"
            if follows_result:
                plain[-1]["content"] += "\n" + result
            else:
                plain.append({"role": "user", "content": result})
        elif message.get("tool_calls"):
            said = _text(message["content"])
            calls = tool_format.written([_name_and_arguments(call) for call in message["tool_calls"]])
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            plain.append({**rest, "content": f"{said}\n{calls}" if said else calls})
        else:
            plain.append(message)
        follows_result = is_result
    if not tools:
        return plain
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return _explained(plain, _BEFORE_TOOLS + listed + _after_tools(tool_format), shows_system=shows_system)


def _after_tools(tool_format: ToolFormat) -> str:
    example = tool_format.written([("<function-name>", "<args-json-object>")])
    tags = _HERMES_TAGS if tool_format.name == "hermes" else ""
    return (
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments"
        f"{tags}:\n{example}"
    )


def _name_and_arguments(call: dict[str, Any]) -> tuple[str, str]:
    arguments = call["function"]["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return call["function"]["name"], arguments


def _explained(messages: list[Message], explanation: str, *, shows_system: bool) -> list[Message]:
    first = messages[0]
    if first["role"] in ("system", "developer"):
        return [{**first, "content": f"{_text(first['content'])}\n\n{explanation}"}, *messages[1:]]
    if shows_system:
        return [{"role": "system", "content": explanation}, *messages]
    if first["role"] == "user":
        return [{**first, "content": _preceded(explanation, first["content"])}, *messages[1:]]
    return [{"role": "user", "content": explanation}, *messages]


def _preceded(text: str, content: Any) -> Any:
    """Put text before a message's content, which may contain parts other than text."""
    if isinstance(content, list):
        return [{"type": "text", "text": text}, *content]
    return f"{text}\n\n{content}"


def _text(content: Any) -> str:
    """Return the text of a message's content, which is a string, None, or parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.get("text", "") for part in content)
