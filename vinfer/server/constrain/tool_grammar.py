"""Writes what constrains an answer to tool calls: a Lark grammar for llguidance, from the tools of a request.

Arguments follow each tool's JSON Schema, as closed by `json_schema`, if a call is required or the tool is
strict. Runs in worker threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from vinfer.engine.grammar import JSON_FORM, GrammarSpec
from vinfer.errors import RequestError
from vinfer.server.constrain.call_rules import (
    CallableTool,
    CallForm,
    TextForm,
    call_or_form,
    lark_text,
    may_call,
    must_call,
)
from vinfer.server.constrain.grammars import MAX_SCHEMA_CHARS, limited_json
from vinfer.server.constrain.json_schema import closed
from vinfer.server.constrain.schema_checks import check_schema
from vinfer.server.constrain.thought_rules import ThoughtForm
from vinfer.server.fields.tools import Tool
from vinfer.server.model_table import ServedModel
from vinfer.text.tool_calls.formats import ToolFormat

PositionedTool = tuple[int, Tool]
"""A tool and its index in the request."""
MAX_CONSTRAINED_CALLS = 16
"""Most calls in one constrained answer, so that a small model that repeats itself comes to an end."""


def required_calls(
    tools: Sequence[PositionedTool], form: CallForm, thought: ThoughtForm | None
) -> GrammarSpec:
    """Write the grammar of calls of these tools, each constrained by its schema.

    Raises:
        RequestError: a schema is too long, or all of them together are.
    """
    return _spec(must_call([_callable(i, tool, follows_schema=True) for i, tool in tools], form, thought))


def optional_calls(tools: Sequence[PositionedTool], form: CallForm, text: TextForm) -> GrammarSpec:
    """Write the grammar of text with calls at its end; the schemas of strict tools constrain them.

    Raises:
        RequestError: as `required_calls`.
    """
    return _spec(may_call(_strictly_callable(tools), form, text))


def calls_or_form(
    tools: Sequence[PositionedTool], form: CallForm, thought: ThoughtForm | None, other: GrammarSpec
) -> GrammarSpec:
    """Write the grammar of calls, as in `optional_calls`, or of another answer.

    Raises:
        RequestError: as `required_calls`.
    """
    rules = call_or_form(_strictly_callable(tools), form, thought)
    return GrammarSpec("lark", _spec(rules).text, other.param, other)


def call_form(model: ServedModel, tool_format: ToolFormat, max_calls: int) -> CallForm:
    """Return how the calls of an answer are written."""
    return CallForm(
        tool_format=tool_format,
        opening=_marker(tool_format.opening, model),
        closing=_marker(tool_format.closing, model),
        max_calls=max_calls,
    )


def arguments_spec(position: int, tool: Tool) -> GrammarSpec:
    """Return the grammar of one tool's arguments alone.

    Raises:
        RequestError: the schema is too long.
    """
    return GrammarSpec("json_schema", _schema_text(position, tool), _path(position))


def _strictly_callable(tools: Sequence[PositionedTool]) -> list[CallableTool]:
    return [_callable(i, tool, follows_schema=bool(tool.function.strict)) for i, tool in tools]


def _callable(position: int, tool: Tool, *, follows_schema: bool) -> CallableTool:
    schema = _schema_text(position, tool)
    return CallableTool(position, tool.function.name, schema if follows_schema else _ANY_OBJECT)


def _spec(rules: str) -> GrammarSpec:
    if len(rules) > MAX_SCHEMA_CHARS:
        raise RequestError(
            f"tools have {len(rules)} characters of JSON Schema together; the limit is {MAX_SCHEMA_CHARS}: "
            "shorten them",
            param="tools",
        )
    return GrammarSpec("lark", rules, "tools")


def _marker(text: str, model: ServedModel) -> str:
    """Write a marker of calls; if it is a control token of the model, as the token, which no text can be."""
    token_id = model.tokenizer.token_to_id(text)
    return f"<[{token_id}]>" if token_id in model.tokenizer.special_ids else lark_text(text)


def _path(position: int) -> str:
    return f"tools[{position}].function.parameters"


_ANY_OBJECT = limited_json({"type": "object", "x-guidance": JSON_FORM}, "tools", MAX_SCHEMA_CHARS)


def _schema_text(position: int, tool: Tool) -> str:
    parameters = {"type": "object", "properties": {}, **(tool.function.parameters or {})}
    check_schema(parameters, _path(position))
    schema = closed(parameters)
    return limited_json({**schema, "x-guidance": JSON_FORM}, _path(position), MAX_SCHEMA_CHARS)
