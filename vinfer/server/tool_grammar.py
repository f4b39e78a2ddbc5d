"""Binds answers to tool calls: from the tools that must be called to a Lark grammar of llguidance.

Arguments follow each tool's JSON Schema, closed as `json_schema` does it; around them stands the model's own
format.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from vinfer.engine.grammar import JSON_FORM, Grammar, GrammarSpec
from vinfer.errors import RequestError
from vinfer.server.json_schema import closed
from vinfer.server.model_table import ServedModel
from vinfer.server.protocol import ChatFields
from vinfer.server.services import Services
from vinfer.server.structured_outputs import MAX_SCHEMA_CHARS
from vinfer.server.tools import Tool, bound_tools
from vinfer.text.tool_formats import ToolFormat

MAX_BOUND_CALLS = 16
"""Calls in one bound answer: a small model that repeats itself comes to an end."""


async def compile_tool_grammar(services: Services, fields: ChatFields, model: ServedModel) -> Grammar | None:
    """Return what binds the answer to tool calls; None where nothing does.

    Raises:
        RequestError: names the tool whose schema cannot be enforced.
    """
    tools = bound_tools(fields.tools, fields.tool_choice)
    tool_format = model.answer_form.tool_format
    if not tools or tool_format is None:
        return None
    is_named = fields.tool_choice is not None and fields.tool_choice.function is not None
    max_calls = MAX_BOUND_CALLS if fields.parallel_tool_calls and not is_named else 1
    markers = (_marker(tool_format.opening, model), _marker(tool_format.closing, model))
    spec = await services.in_worker(tool_grammar_spec, tools, tool_format, markers, max_calls)
    try:
        return await model.grammars.compile(spec)
    except RequestError:
        for i, tool in tools:
            # Which of them is it?
            await model.grammars.compile(GrammarSpec("json_schema", _schema_text(i, tool), _path(i)))
        raise


def tool_grammar_spec(
    tools: Sequence[tuple[int, Tool]], tool_format: ToolFormat, markers: tuple[str, str], max_calls: int
) -> GrammarSpec:
    """Write the grammar of 1 to `max_calls` calls of these tools, each with its position in the request.

    Args:
        markers: the format's opening and closing, as Lark has them.

    Raises:
        RequestError: a schema is too long, or all of them together.
    """
    opening, closing = markers
    if tool_format.begins_with_call:
        opening = ""
    marked = f"{opening} {_text(tool_format.before_calls)} {{}} {_text(tool_format.after_calls)} {closing}"
    more = f" ({json.dumps(tool_format.separator)} one){{0,{max_calls - 1}}}" if max_calls > 1 else ""
    lines = ["%llguidance {}"]
    if tool_format.repeats_markers:
        lines += [f"start: one{more}", f"one: {marked.format('call')}"]
    else:
        lines += [f"start: {marked.format('calls')}", f"calls: one{more}", "one: call"]
    lines.append("call: " + " | ".join(f"call_{i}" for i, _ in tools))
    for i, tool in tools:
        head = json.dumps(tool_format.call_head(tool.function.name))
        lines += [f'call_{i}: {head} arguments_{i} "}}"', f"arguments_{i}: %json {_schema_text(i, tool)}"]
    text = "\n".join(lines)
    if len(text) > MAX_SCHEMA_CHARS:
        raise RequestError(
            f"tools have {len(text)} characters of JSON Schema together; the limit is {MAX_SCHEMA_CHARS}: "
            "shorten them",
            param="tools",
        )
    return GrammarSpec("lark", text, "tools")


def _text(text: str) -> str:
    """Write text as Lark has it: JSON's strings are Lark's, but for the empty one."""
    return json.dumps(text) if text else ""


def _marker(text: str, model: ServedModel) -> str:
    """Write what begins or ends calls: a control token where the model has it, which no text can be."""
    token_id = model.tokenizer.token_to_id(text)
    return f"<[{token_id}]>" if token_id in model.tokenizer.special_ids else _text(text)


def _path(position: int) -> str:
    return f"tools[{position}].function.parameters"


def _schema_text(position: int, tool: Tool) -> str:
    schema = closed({"type": "object", "properties": {}, **(tool.function.parameters or {})})
    text = json.dumps({**schema, "x-guidance": JSON_FORM}, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_SCHEMA_CHARS:
        raise RequestError(
            f"{_path(position)} has {len(text)} characters as JSON; the limit is {MAX_SCHEMA_CHARS}: "
            "shorten it",
            param=_path(position),
        )
    return text
