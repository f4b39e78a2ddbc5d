"""Tools for models whose chat template knows none: they are explained in text, in the Hermes form.

Pure functions of messages as a chat template takes them. The words around the tools are those that the
Hermes and Qwen models were trained with, since most models have seen them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vinfer.text.tool_formats import written_calls

Message = dict[str, Any]

_BEFORE_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_AFTER_TOOLS = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


def with_tools_as_text(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, shows_system: bool
) -> list[Message]:
    """Put tools and calls into plain messages: calls into the assistant's text, results into a user turn.

    Args:
        tools: may be empty; earlier calls are rewritten all the same.
        shows_system: whether the template takes a system message; else the first user turn has the tools.
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
            calls = written_calls(message["tool_calls"])
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            plain.append({**rest, "content": f"{said}\n{calls}" if said else calls})
        else:
            plain.append(message)
        follows_result = is_result
    return _explained(plain, tools, shows_system=shows_system) if tools else plain


def _explained(
    messages: list[Message], tools: Sequence[dict[str, Any]], *, shows_system: bool
) -> list[Message]:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    explanation = _BEFORE_TOOLS + listed + _AFTER_TOOLS
    first = messages[0]
    if first["role"] in ("system", "developer"):
        return [{**first, "content": f"{_text(first['content'])}\n\n{explanation}"}, *messages[1:]]
    if shows_system:
        return [{"role": "system", "content": explanation}, *messages]
    if first["role"] == "user":
        return [{**first, "content": _preceded(explanation, first["content"])}, *messages[1:]]
    return [{"role": "user", "content": explanation}, *messages]


def _preceded(text: str, content: Any) -> Any:
    """Put text before a message's content, which may hold other parts than text."""
    if isinstance(content, list):
        return [{"type": "text", "text": text}, *content]
    return f"{text}\n\n{content}"


def _text(content: Any) -> str:
    """Return the text of a message's content: a string, None, or parts."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.get("text", "") for part in content)
