"""Constrains answers to tool calls: writes a Lark grammar for llguidance from the tools in a request.

Arguments follow each tool's JSON Schema, as closed by `json_schema`. If the model decides whether to call a
tool, calls of `strict` tools are constrained once they begin.
"""

from __future__ import annotations

from collections.abc import Sequence

from vinfer.engine.grammar import JSON_FORM, Grammar, GrammarSpec
from vinfer.errors import RequestError
from vinfer.server.constrain.call_rules import (
    CallableTool,
    CallForm,
    TextForm,
    lark_text,
    may_call,
    must_call,
)
from vinfer.server.constrain.endless import check_ends
from vinfer.server.constrain.grammars import MAX_SCHEMA_CHARS, limited_json
from vinfer.server.constrain.json_schema import closed
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.tools import Tool, required_tools, strict_tools
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services

MAX_CONSTRAINED_CALLS = 16
"""Most calls in one constrained answer, so that a small model that repeats itself comes to an end."""


async def compile_tool_grammar(
    services: Services, fields: ChatFields, model: ServedModel, *, is_reasoning_open: bool
) -> Grammar | None:
    """Return the grammar that constrains the answer to tool calls; None if nothing does.

    Args:
        is_reasoning_open: the prompt ends inside the model's reasoning.

    Raises:
        RequestError: names the tool whose schema cannot be enforced.
    """
    must = required_tools(fields.tools, fields.tool_choice)
    strict = strict_tools(fields.tools, fields.tool_choice)
    tool_format = model.answer_form.tool_format
    if tool_format is None or not (must or strict):
        return None
    is_named = fields.tool_choice is not None and fields.tool_choice.function is not None
    form = CallForm(
        tool_format=tool_format,
        opening=_marker(tool_format.opening, model),
        closing=_marker(tool_format.closing, model),
        max_calls=MAX_CONSTRAINED_CALLS if fields.parallel_tool_calls and not is_named else 1,
    )
    text = None if must else _text_form(model, is_reasoning_open=is_reasoning_open)
    spec = await services.in_worker(tool_grammar_spec, must or list(enumerate(fields.tools)), form, text)
    try:
        return await model.grammars.compile(spec)
    except RequestError:
        for i, tool in must or strict:
            # Find out which tool it is.
            await model.grammars.compile(GrammarSpec("json_schema", _schema_text(i, tool), _path(i)))
        raise


def tool_grammar_spec(
    tools: Sequence[tuple[int, Tool]], form: CallForm, text: TextForm | None
) -> GrammarSpec:
    """Write the grammar of calls of these tools, each with its position in the request.

    Args:
        text: what may be written before calls, which are then optional; None if a call is required.

    Raises:
        RequestError: a schema is too long, or all of them together are.
    """
    if text is None:
        rules = must_call(
            [CallableTool(i, tool.function.name, _schema_text(i, tool)) for i, tool in tools], form
        )
    else:
        schemas = [
            (i, tool, _schema_text(i, tool) if tool.function.strict else _ANY_OBJECT) for i, tool in tools
        ]
        rules = may_call(
            [CallableTool(i, tool.function.name, schema) for i, tool, schema in schemas], form, text
        )
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


def _text_form(model: ServedModel, *, is_reasoning_open: bool) -> TextForm:
    """Return what may come before calls: all that is possible without a grammar, except bad UTF-8."""
    tokenizer = model.tokenizer
    opening = model.answer_form.tool_format and tokenizer.token_to_id(model.answer_form.tool_format.opening)
    free = sorted(tokenizer.special_ids - {opening, *model.eos_token_ids})
    return TextForm(
        control_tokens=f"<[{','.join(map(str, free))}]>" if free else "",
        has_reasoning=model.answer_form.has_reasoning,
        is_reasoning_open=is_reasoning_open,
    )


def _path(position: int) -> str:
    return f"tools[{position}].function.parameters"


_ANY_OBJECT = limited_json({"type": "object", "x-guidance": JSON_FORM}, "tools", MAX_SCHEMA_CHARS)


def _schema_text(position: int, tool: Tool) -> str:
    parameters = {"type": "object", "properties": {}, **(tool.function.parameters or {})}
    check_ends(parameters, _path(position))
    schema = closed(parameters)
    return limited_json({**schema, "x-guidance": JSON_FORM}, _path(position), MAX_SCHEMA_CHARS)
