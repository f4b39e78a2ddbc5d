"""Lark rules for llguidance: answers that must be tool calls, calls or another form, or text and then calls.

Pure functions of a `ToolFormat`, each tool's JSON Schema as text, and how the format's markers are written.
Free text ends where `vinfer.text.tool_calls.parser` sees the beginning of a call. That is the first marker
or, in a format that begins with a call, the opening brace of an answer.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

from vinfer.server.constrain.pythonic_rules import pythonic_rules
from vinfer.server.constrain.thought_rules import ThoughtForm, after_thought
from vinfer.text import reasoning
from vinfer.text.tool_calls.formats import ToolFormat

_ANY = "(?s:.)"


@dataclasses.dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool in the rules; `position` is its index in the request, `schema` is that of its arguments."""

    position: int
    name: str
    schema: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallForm:
    """How calls are written and read.

    Attributes:
        opening, closing: the format's markers in Lark: text, or a control token.
        max_calls: at least 1.
    """

    tool_format: ToolFormat
    opening: str
    closing: str
    max_calls: int

    @property
    def opening_is_token(self) -> bool:
        return self.opening.startswith("<[")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """What may be written before calls.

    Attributes:
        control_tokens: those that text may contain, in Lark; empty for none.
        has_reasoning: the answer may begin with reasoning, which is not constrained.
        is_reasoning_open: the answer begins inside the reasoning.
    """

    control_tokens: str = ""
    has_reasoning: bool = False
    is_reasoning_open: bool = False


Keywords = Mapping[CallableTool, list[str] | None]
"""For each tool, the rules of its arguments in Python's form; None if they have no such form."""


def lark_text(text: str) -> str:
    """Write text in Lark, whose strings are JSON's, except for the empty one."""
    return json.dumps(text) if text else ""


def must_call(tools: Sequence[CallableTool], form: CallForm, thought: ThoughtForm | None) -> str:
    """Write the grammar of 1 to `max_calls` calls and nothing else, except for reasoning before them."""
    opening = "" if form.tool_format.begins_with_call else form.opening
    called = [*after_thought("called", thought), f"called: {opening} rest"]
    return _joined([*called, *_rest(form), *_calls(tools, form)])


def call_or_form(tools: Sequence[CallableTool], form: CallForm, thought: ThoughtForm | None) -> str:
    """Write the grammar of 1 to `max_calls` calls or of the grammar `@form`, as the answer begins."""
    keywords = _keywords(tools, form)
    if form.tool_format.is_pythonic:
        starts = [f"{marker} {following}" for _, marker, following in _triggers(form, keywords)]
    else:
        starts = [f"{form.opening} rest", *(["rest"] if form.tool_format.begins_with_call else [])]
    lines = [*after_thought("answer", thought), " | ".join(["answer: @form", *starts])]
    lines += [*_rest(form), *_calls(tools, form)]
    if form.tool_format.is_pythonic:
        lines += _pythonic(form, keywords)
    return _joined(lines)


def may_call(tools: Sequence[CallableTool], form: CallForm, text: TextForm) -> str:
    """Write the grammar of free text with at most `max_calls` calls at its end."""
    keywords = _keywords(tools, form)
    lines = [*_start(text), *_answer(form, text, keywords), *_rest(form), *_calls(tools, form)]
    if form.tool_format.is_pythonic:
        lines += _pythonic(form, keywords)
    return _joined(lines)


def _keywords(tools: Sequence[CallableTool], form: CallForm) -> Keywords:
    if not form.tool_format.is_pythonic:
        return {}
    return {tool: pythonic_rules(tool.schema, str(tool.position)) for tool in tools}


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(["%llguidance {}", *lines])


def _more(form: CallForm, call: str) -> str:
    separator = lark_text(form.tool_format.separator)
    return f"({separator} {call}){{0,{form.max_calls - 1}}}" if form.max_calls > 1 else ""


def _rest(form: CallForm) -> list[str]:
    """Write what follows the first opening."""
    before, after = lark_text(form.tool_format.before_calls), lark_text(form.tool_format.after_calls)
    if form.tool_format.repeats_markers:
        inside = f"{before} call {after} {form.closing}"
        return [f"rest: one {_more(form, f'{form.opening} one')}", f"one: {inside}"]
    return [f"rest: {before} call {_more(form, 'call')} {after} {form.closing}"]


def _calls(tools: Sequence[CallableTool], form: CallForm) -> list[str]:
    lines = ['call: "{" unbraced', "unbraced: " + " | ".join(f"call_{tool.position}" for tool in tools)]
    for tool in tools:
        i = tool.position
        head = json.dumps(form.tool_format.call_head(tool.name).removeprefix("{"))
        lines += [f'call_{i}: {head} arguments_{i} "}}"', f"arguments_{i}: %json {tool.schema}"]
    return lines


def _start(text: TextForm) -> list[str]:
    """Write an answer with its reasoning, which ends at the first closing tag, whatever it contains."""
    if not text.has_reasoning:
        return ["start: answer"]
    tail = "tail?" if text.control_tokens else ""
    closing = re.escape(reasoning.CLOSING).replace("/", "\\/")
    opening = "" if text.is_reasoning_open else f"\\s*{re.escape(reasoning.OPENING)}"
    lines = [
        f"thought[lazy]: /{opening}{_ANY}*{closing}/",
        f"UNCLOSED: /{opening}{_ANY}*/",
        f"start: thought answer | UNCLOSED {tail}",
    ]
    if not text.is_reasoning_open:
        lines[-1] += " | answer"
    return lines


def _answer(form: CallForm, text: TextForm, keywords: Keywords) -> list[str]:
    """Write text that ends where a call begins.

    A control token splits text in two: what follows it is a `tail`, in which no reasoning begins.
    """
    gap = _characters(form.tool_format.gap)
    excluded = [f"\\s*{re.escape(reasoning.OPENING)}{_ANY}*"] if text.has_reasoning else []
    at_start = [f"{gap}*\\{{{_ANY}*"] if form.tool_format.begins_with_call else []
    unwritable = _unwritable(form, keywords)
    lines = [f"TEXT: {_without(_ANY + '+', unwritable)}"]
    lines.append(f"HEAD: {_without(_ANY + '+', [*excluded, *at_start, *unwritable])}")
    answers, tails = ["HEAD?"], ["TEXT?"]
    if form.tool_format.begins_with_call:
        lines.append(f"GAP: /{gap}+/")
        answers.append("GAP? rest")
    if form.opening_is_token:
        answers.append(f"HEAD? {form.opening} rest")
        tails.append(f"TEXT? {form.opening} rest")
    else:
        for name, marker, following in _triggers(form, keywords):
            first = _without(_ANY + "*", [*excluded, *at_start])
            lines += [f"first_{name}[lazy]: ({first}) {marker}", f"later_{name}[lazy]: /{_ANY}*/ {marker}"]
            answers.append(f"first_{name} {following}")
            tails.append(f"later_{name} {following}")
    if text.control_tokens:
        lines.append(f"tail: {text.control_tokens} after_token")
        lines.append("after_token: " + " | ".join([*tails, "TEXT? tail"]))
        answers.append("HEAD? tail")
    return [*lines, "answer: " + " | ".join(answers)]


def _triggers(form: CallForm, keywords: Keywords) -> list[tuple[str, str, str]]:
    """Return, for each text that begins calls, a name for it, what it ends with, and what follows it."""
    if not form.tool_format.is_pythonic:
        return [("marker", form.opening, "rest")]
    bracket = f"/\\[{_characters(form.tool_format.gap)}*"
    found = [("object", f"{bracket}\\{{/", "unbraced_rest")]
    for tool, rules in keywords.items():
        if rules is not None:
            i = tool.position
            found.append((f"python_{i}", f"{bracket}{re.escape(tool.name)}\\(/", f"keywords_{i} python_rest"))
    return found


def _unwritable(form: CallForm, keywords: Keywords) -> list[str]:
    """Return what text must not contain: Python calls of tools whose arguments have no Python form."""
    gap = _characters(form.tool_format.gap)
    names = [tool.name for tool, rules in keywords.items() if rules is None]
    return [f"{_ANY}*\\[{gap}*{re.escape(name)}\\({_ANY}*" for name in names]


def _pythonic(form: CallForm, keywords: Keywords) -> list[str]:
    """Write the calls that begin in Python's form; those that follow have the same form."""
    lines = [f"unbraced_rest: unbraced {_more(form, 'call')} {form.closing}"]
    callable_so = []
    for tool, rules in keywords.items():
        if rules is not None:
            lines += rules
            callable_so.append(f"{json.dumps(tool.name + '(')} keywords_{tool.position}")
    if callable_so:
        lines += [
            f"python_rest: {_more(form, 'python_call')} {form.closing}",
            "python_call: " + " | ".join(callable_so),
        ]
    return lines


def _characters(characters: str) -> str:
    """Write a set of characters as a regular expression."""
    return "[" + "".join(f"\\x{ord(character):02x}" for character in characters) + "]"


def _without(pattern: str, excluded: Sequence[str]) -> str:
    """Write an expression of the texts that match one pattern and none of the others."""
    return " & ".join([f"/{pattern}/", *(f"~/{other}/" for other in excluded)])
