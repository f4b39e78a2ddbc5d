"""Splits one choice's text into the fields of a chat message: reasoning, content and tool calls.

Event loop; whole and streamed answers go through the same reader. It does not know how either is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from vinfer.server.fields.tools import Tool
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

    def as_answer(self) -> dict[str, Any]:
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
        only_calls: the answer can only be calls, so whatever else is read is a part of one that was cut off.
        is_parallel: several calls may be returned; if not, everything from the second call on is dropped.
        reasoning: splits off the model's reasoning; None if the model answers directly.
    """

    def __init__(
        self,
        form: AnswerForm,
        tools: Sequence[Tool],
        *,
        is_parallel: bool,
        calls_come_first: bool = False,
        only_calls: bool = False,
        reasoning: ReasoningParser | None = None,
    ) -> None:
        self.reasoning = ""
        self.content = ""
        self._reasoning = reasoning
        self.calls: list[AnswerCall] = []
        self._only_calls = only_calls
        self._is_parallel = is_parallel
        self._is_over = False
        self._form = form.tool_format
        self._parser = None
        if tools and self._form is not None:
            self._parser = ToolCallParser(
                self._form, {tool.function.name for tool in tools}, calls_come_first=calls_come_first
            )

    @property
    def has_call_instead_of_text(self) -> bool:
        """Whether the answer is a call, even if too little of it came to show its name."""
        return bool(self.calls) or self._only_calls or (self._parser is not None and self._parser.is_cut)

    def push(self, text: str, *, is_last: bool) -> list[dict[str, Any]]:
        """Read more text and return each piece of the message as a streamed delta."""
        deltas = []
        for event in self._events(text, is_last=is_last):
            self._is_over = self._is_over or (
                isinstance(event, CallStart) and bool(self.calls) and not self._is_parallel
            )
            if not self._is_over:
                deltas.append(self._delta(event))
        return deltas

    def _events(self, text: str, *, is_last: bool) -> list[Event]:
        parts: list[Text | Reasoning] = [Text(text)] if text else []
        if self._reasoning is not None:
            parts = self._reasoning.push(text) + (self._reasoning.finish() if is_last else [])
        if self._parser is None:
            return list(parts)
        events: list[Event] = []
        for part in parts:
            events += self._parser.push(part.text) if isinstance(part, Text) else [part]
        events += self._parser.finish() if is_last else []
        return [event for event in events if not (self._only_calls and isinstance(event, Text))]

    def _delta(self, event: Event) -> dict[str, Any]:
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
            return {"tool_calls": [{"index": len(self.calls) - 1, **call.as_answer()}]}
        assert isinstance(event, CallArguments)
        self.calls[-1].arguments += event.text
        return {"tool_calls": [{"index": len(self.calls) - 1, "function": {"arguments": event.text}}]}
