"""A conversation of three turns, each with a tool call: the same for every client.

Each client sends its own messages back as it got them. The same conversation in plain JSON is the reference.
"""

from __future__ import annotations

import json
from typing import Any

from client_runs.questions import WEATHER_NAME, WEATHER_TOOL, expect_weather_call
from client_runs.raw import RawServer
from client_runs.rows import expect_equal

CITIES = ("Paris", "London", "Oslo")
MAX_TOKENS = 60
NAMED: Any = {"type": "function", "function": {"name": WEATHER_NAME}}


def question(city: str) -> str:
    return f"How is the weather in {city}?"


def result(city: str) -> str:
    return f"22 degrees and sunny in {city}"


class PlainConversation:
    """The messages of the conversation so far, in plain JSON."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []

    def add_call(self, city: str, arguments: Any) -> None:
        """Add a question, the call that it led to, and its result; `arguments` as JSON text or parsed."""
        expect_weather_call(WEATHER_NAME, arguments)
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call = {
            "id": f"call_{city}",
            "type": "function",
            "function": {"name": WEATHER_NAME, "arguments": text},
        }
        self._messages += [
            {"role": "user", "content": question(city)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": result(city)},
        ]

    def add_answer(self, raw: RawServer, text: Any) -> None:
        """Check an answer against the server's own to the same conversation, and add it."""
        expected = raw.chat(
            messages=self._messages, tools=[WEATHER_TOOL], tool_choice="none", max_tokens=MAX_TOKENS
        )["message"]["content"]
        expect_equal(text, expected)
        self._messages.append({"role": "assistant", "content": expected})

    def remark(self) -> str:
        """Return what the row says."""
        return f"{len(self._messages)} messages, the last {str(self._messages[-1]['content'])[:60]!r}"
