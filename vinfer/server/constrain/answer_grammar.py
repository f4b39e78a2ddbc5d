"""Compiles what constrains the answer to a conversation: a form, calls of tools, or either of them.

If the model reasons, the reasoning before a constrained answer is free. Called on the event loop; grammars
are written in worker threads and compiled on the model's grammar thread.
"""

from __future__ import annotations

import dataclasses

from vinfer.engine.grammar import Grammar, GrammarSpec
from vinfer.errors import RequestError
from vinfer.server.constrain.call_rules import TextForm
from vinfer.server.constrain.grammars import grammar_spec
from vinfer.server.constrain.thought_rules import ThoughtForm, after_thought
from vinfer.server.constrain.tool_grammar import (
    PositionedTool,
    arguments_spec,
    call_form,
    calls_or_form,
    optional_calls,
    required_calls,
)
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.tools import required_tools, strict_tools
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services
from vinfer.text import reasoning


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """Whether an answer may begin with reasoning, and whether the prompt has begun it already."""

    is_possible: bool
    is_open: bool


async def compile_answer_grammar(
    services: Services, fields: ChatFields, model: ServedModel, thinks: Reasoning
) -> Grammar | None:
    """Return the grammar that constrains the answer; None if nothing does.

    Raises:
        RequestError: names the field, or the tool, that cannot be enforced.
    """
    spec = await services.in_worker(_answer_spec, fields, model, thinks)
    if spec is None:
        return None
    try:
        return await model.grammars.compile(spec)
    except RequestError:
        # Find out which part it is.
        if spec.form is not None:
            await model.grammars.compile(spec.form)
        for i, tool in _constrained_tools(fields):
            await model.grammars.compile(arguments_spec(i, tool))
        raise


def _answer_spec(fields: ChatFields, model: ServedModel, thinks: Reasoning) -> GrammarSpec | None:
    form = grammar_spec(fields.response_format, fields.structured_outputs)
    tools = list(enumerate(fields.callable_tools))
    required = required_tools(fields.tools, fields.tool_choice)
    tool_format = model.answer_form.tool_format
    thought = _thought_form(model, thinks)
    if tools and tool_format is not None:
        calls = call_form(fields, model, tool_format)
        if required:
            return required_calls(required, calls, thought)
        if form is not None:
            return calls_or_form(tools, calls, thought, form)
        if strict_tools(fields.tools, fields.tool_choice):
            return optional_calls(tools, calls, _text_form(model, thinks))
    if form is None or thought is None:
        return form
    return GrammarSpec(
        "lark", "\n".join(["%llguidance {}", *after_thought("@form", thought)]), form.param, form
    )


def _constrained_tools(fields: ChatFields) -> list[PositionedTool]:
    return required_tools(fields.tools, fields.tool_choice) or strict_tools(fields.tools, fields.tool_choice)


def _thought_form(model: ServedModel, thinks: Reasoning) -> ThoughtForm | None:
    if not thinks.is_possible:
        return None
    tags = (reasoning.OPENING, reasoning.CLOSING)
    opening, closing = (_special_id(model, tag) for tag in tags)
    return ThoughtForm(
        opening=tags[0] if opening is None else opening,
        closing=tags[1] if closing is None else closing,
        control_tokens=_control_tokens(model, {opening, closing}),
        is_open=thinks.is_open,
    )


def _text_form(model: ServedModel, thinks: Reasoning) -> TextForm:
    """Return what may come before calls: all that is possible without a grammar, except bad UTF-8."""
    tool_format = model.answer_form.tool_format
    opening = None if tool_format is None else _special_id(model, tool_format.opening)
    return TextForm(
        control_tokens=_control_tokens(model, {opening}),
        has_reasoning=thinks.is_possible,
        is_reasoning_open=thinks.is_open,
    )


def _special_id(model: ServedModel, text: str) -> int | None:
    token_id = model.tokenizer.token_to_id(text)
    return token_id if token_id in model.tokenizer.special_ids else None


def _control_tokens(model: ServedModel, without: set[int | None]) -> str:
    """Write the control tokens that free text may contain, in Lark; empty if there are none."""
    free = sorted(model.tokenizer.special_ids - without - set(model.card.eos_token_ids))
    return f"<[{','.join(map(str, free))}]>" if free else ""
