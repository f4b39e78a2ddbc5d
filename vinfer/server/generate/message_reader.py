"""Splits one choice's text into the fields of a chat message: reasoning, content and tool calls.

Event loop; whole and streamed answers go through the same reader. It does not know how either is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vinfer.server.answers.bodies import AnsweredCall, FunctionDelta, MessageDelta
from vinfer.server.fields.tools import Tool
from vinfer.server.generate.generation import ChoiceDelta
from vinfer.text.answer_form import AnswerForm
from vinfer.text.reasoning import ReasoningParser
from vinfer.text.tool_calls.events import CallArguments, CallStart, Event, Reasoning, Text
from vinfer.text.tool_calls.parser import ToolCallParser


@dataclasses.dataclass(slots=True)
class AnswerCall:
    """A tool call of an answer; `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str = ""

    def as_answer(self) -> AnsweredCall:
        """Return the call as it appears in a whole message."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


class MessageReader:
    """Reads one choice as its text comes; `reasoning`, `content` and `calls` are what it has read so far.

    Args:
        tools: those that may be called; without any, nothing is a call.
        calls_come_first: an answer that does not begin with a call has none, whatever its text contains.
        is_parallel: several calls may be returned; if not, everything from the second call on is dropped.
        must_call: the answer is constrained to calls.
        shows_reasoning: whether reasoning is part of the message; if not, it is dropped.
        reasoning: splits off the model's reasoning; None if the model answers directly.
    """

    def __init__(
        self,
        form: AnswerForm,
        tools: Sequence[Tool],
        *,
        is_parallel: bool,
        calls_come_first: bool = False,
        must_call: bool = False,
        shows_reasoning: bool = True,
        reasoning: ReasoningParser | None = None,
    ) -> None:
        self.reasoning = ""
        self.content = ""
        self._reasoning = reasoning
        self.calls: list[AnswerCall] = []
        self._is_parallel = is_parallel
        self._must_call = must_call
        self._shows_reasoning = shows_reasoning
        self._is_over = False
        self._form = form.tool_format
        self._parser = None
        if tools and self._form is not None:
            self._parser = ToolCallParser(
                self._form, {tool.function.name for tool in tools}, calls_come_first=calls_come_first
            )

    @property
    def whole_content(self) -> str | None:
        """The content of a whole message; null for a message that has nothing but calls, or should have."""
        is_call = bool(self.calls) or self._must_call or (self._parser is not None and self._parser.is_cut)
        return self.content or None if is_call else self.content

    def read(self, delta: ChoiceDelta) -> list[MessageDelta]:
        """Read what the choice has gained and return each piece of the message as a streamed delta."""
        deltas = []
        is_last, is_cut = delta.finish_reason is not None, delta.finish_reason == "length"
        for event in self._events(delta.text, is_last=is_last, is_cut=is_cut):
            if isinstance(event, Reasoning) and not self._shows_reasoning:
                continue
            self._is_over = self._is_over or (
                isinstance(event, CallStart) and bool(self.calls) and not self._is_parallel
            )
            if not self._is_over:
                deltas.append(self._delta(event))
        return deltas

    def _events(self, text: str, *, is_last: bool, is_cut: bool) -> list[Event]:
        parts: list[Text | Reasoning] = [Text(text)] if text else []
        if self._reasoning is not None:
            parts = self._reasoning.push(text) + (self._reasoning.finish() if is_last else [])
        if self._parser is None:
            return list(parts)
        events: list[Event] = []
        for part in parts:
            events += self._parser.push(part.text) if isinstance(part, Text) else [part]
        if is_last:
            events += self._parser.finish(must_call=self._must_call, is_cut=is_cut)
        return events

    def _delta(self, event: Event) -> MessageDelta:
        if isinstance(event, Text):
            self.content += event.text
            return {"content": event.text}
        if isinstance(event, Reasoning):
            self.reasoning += event.text
            return {"reasoning_content": event.text}
        if isinstance(event, CallStart):
            assert self._form is not None
            call = AnswerCall(self._form.new_id(), event.name)
            self.calls.append(call)
            begun: FunctionDelta = {"name": call.name, "arguments": ""}
            index = len(self.calls) - 1
            return {"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": begun}]}
        assert isinstance(event, CallArguments)
        self.calls[-1].arguments += event.text
        return {"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": event.text}}]}
