"""Reads the events of a streamed chat completion: text, tool calls, figures. No input, no output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from vinfer.errors import AnswerError

_MAX_REASON_CHARS = 500


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; `arguments` is JSON as the model wrote it."""

    id: str
    name: str
    arguments: str

    def as_message_part(self) -> dict[str, Any]:
        """Return the call as a message of the assistant has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """What a part of an answer adds: text, or reasoning before it; all calls come with its end."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(slots=True)
class Stats:
    """Figures of one answer; times in seconds from the request, tokens as the server counts them.

    Attributes:
        first_seconds: time to the first piece; None if there was none.
        last_seconds: time to the last piece.
    """

    first_seconds: float | None = None
    last_seconds: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens after the first piece by the time that they took; None if that is not known."""
        if self.first_seconds is None or not self.completion_tokens or self.completion_tokens < 2:
            return None
        seconds = self.last_seconds - self.first_seconds
        return (self.completion_tokens - 1) / seconds if seconds > 0 else None

    def count(self, usage: Mapping[str, Any]) -> None:
        """Take the tokens from a `usage` object."""
        self.prompt_tokens = usage.get("prompt_tokens")
        self.completion_tokens = usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details") or {}
        self.cached_tokens = details.get("cached_tokens")


class AnswerReader:
    """Puts one streamed answer together; `stats` are filled in but for the times."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._calls: dict[int, dict[str, str]] = {}

    def push(self, event: Mapping[str, Any]) -> Piece:
        """Return what an event adds to the first choice."""
        if usage := event.get("usage"):
            self._stats.count(usage)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            for part in delta.get("tool_calls") or ():
                self._add_call(part)
            calls: tuple[ToolCall, ...] = ()
            if reason := choice.get("finish_reason"):
                self._stats.finish_reason = reason
                calls = tuple(ToolCall(**call) for _, call in sorted(self._calls.items()))
            return Piece(delta.get("content") or "", delta.get("reasoning_content") or "", calls)
        return Piece()

    def _add_call(self, part: Mapping[str, Any]) -> None:
        call = self._calls.setdefault(part.get("index") or 0, {"id": "", "name": "", "arguments": ""})
        function = part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["name"] += function.get("name") or ""
        call["arguments"] += function.get("arguments") or ""


def parse_line(line: str) -> dict[str, Any] | None:
    """Return the event in a line of a stream; nothing for a line without one, None for `[DONE]`.

    Raises:
        AnswerError: the line has an error, or something else than a JSON object.
    """
    name, _, value = line.partition(":")
    if name != "data":
        return {}
    if value.strip() == "[DONE]":
        return None
    try:
        event = json.loads(value)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise AnswerError(f"the server sent {value[:80]!r}, which is no event of a chat completion")
    if error := event.get("error"):
        message = error.get("message") if isinstance(error, dict) else error
        raise AnswerError(f"the server ended the answer: {str(message)[:_MAX_REASON_CHARS]}")
    return event
