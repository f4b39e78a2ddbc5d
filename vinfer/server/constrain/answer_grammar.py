"""Decides and compiles what constrains the answer to a conversation: a form, calls of tools, or either.

If the model reasons, the reasoning before a constrained answer is free. Called on the event loop; grammars
are written in worker threads and compiled on the model's grammar thread.
"""

from __future__ import annotations

import dataclasses

from vinfer.engine.grammar import Grammar, GrammarSpec
from vinfer.errors import RequestError
from vinfer.server.constrain.call_rules import TextForm
from vinfer.server.constrain.grammars import form_of
from vinfer.server.constrain.thought_rules import ThoughtForm, after_thought
from vinfer.server.constrain.tool_grammar import (
    MAX_CONSTRAINED_CALLS,
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRules:
    """What the answer to a conversation may be, besides reasoning; decided before its prompt is written.

    Attributes:
        tools: those that it may call, with their positions in the request.
        required: those of which it must call one; empty if it need not.
        strict: those whose calls follow their schemas although none is required.
        max_calls: at least 1.
        form: what it must be if it is no call; None for any text.
    """

    tools: tuple[PositionedTool, ...]
    required: tuple[PositionedTool, ...]
    strict: tuple[PositionedTool, ...]
    max_calls: int
    form: GrammarSpec | None

    @property
    def constrains(self) -> bool:
        """Whether some answers are not allowed."""
        return self.form is not None or bool(self.required)


async def answer_rules(services: Services, fields: ChatFields) -> AnswerRules:
    """Return what the fields of a conversation say about its answer.

    Raises:
        RequestError: names the field that cannot be enforced.
    """
    choice = fields.tool_choice
    is_single = not fields.parallel_tool_calls or (choice is not None and choice.function is not None)
    return AnswerRules(
        tools=tuple(enumerate(fields.callable_tools)),
        required=tuple(required_tools(fields.tools, choice)),
        strict=tuple(strict_tools(fields.tools, choice)),
        max_calls=1 if is_single else MAX_CONSTRAINED_CALLS,
        form=await form_of(services, fields),
    )


async def compile_answer_grammar(
    services: Services, rules: AnswerRules, model: ServedModel, thinks: Reasoning
) -> Grammar | None:
    """Return the grammar that constrains the answer; None if nothing does.

    Raises:
        RequestError: names the field, or the tool, that cannot be enforced.
    """
    spec = await services.in_worker(_answer_spec, rules, model, thinks)
    if spec is None:
        return None
    try:
        return await model.grammars.compile(spec)
    except RequestError:
        # Find out which part it is.
        if spec.form is not None:
            await model.grammars.compile(spec.form)
        for i, tool in rules.required or rules.strict:
            await model.grammars.compile(arguments_spec(i, tool))
        raise


def _answer_spec(rules: AnswerRules, model: ServedModel, thinks: Reasoning) -> GrammarSpec | None:
    form = rules.form
    tool_format = model.answer_form.tool_format
    thought = _thought_form(model, thinks)
    if rules.tools and tool_format is not None:
        calls = call_form(model, tool_format, rules.max_calls)
        if rules.required:
            return required_calls(rules.required, calls, thought)
        if form is not None:
            return calls_or_form(rules.tools, calls, thought, form)
        if rules.strict:
            return optional_calls(rules.tools, calls, _text_form(model, thinks))
    if form is None or thought is None:
        return form
    return GrammarSpec(
        "lark", "\n".join(["%llguidance {}", *after_thought("@form", thought)]), form.param, form
    )


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
