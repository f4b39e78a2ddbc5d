"""Parses one tool call that a model writes as a JSON object, character by character.

Linear: each character is read once, so the result does not depend on how the text is split into pieces. Once
the name and the beginning of the arguments are known, the arguments are emitted as the model writes them.
Until then everything is held, so that an object that is not a call can still be shown as text.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from vinfer.text.tool_calls.events import CallArguments, CallStart, Event

_ARGUMENT_KEYS = ("arguments", "parameters")


class JsonCall:
    """One object, from its opening brace to its closing brace.

    Attributes:
        is_done: whether the object is complete.
        is_call: whether it is a call, whose events have been emitted.

    Args:
        names: names of the tools that may be called; an object with another name is not a call.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.is_done = False
        self.is_call = False
        self._names = names
        self._held: list[str] = []
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self._string: list[str] = []
        self._key = ""
        self._is_value = False
        self._name = ""
        self._is_in_arguments = False

    @property
    def held_text(self) -> str:
        """The text read so far, as long as it is not known to be a call."""
        return "".join(self._held)

    def push(self, text: str) -> tuple[list[Event], int]:
        """Read more of the object; its first character is `{`.

        Returns:
            The new events, and how many characters were read: fewer than given once `is_done`.
        """
        events: list[Event] = []
        arguments: list[str] = []
        num_read = 0
        for character in text:
            num_read += 1
            was_in_arguments = self._is_in_arguments
            self._read(character)
            if self._is_in_arguments and not was_in_arguments:
                self.is_call = True
                self._held.clear()
                events.append(CallStart(self._name))
            if self._is_in_arguments or was_in_arguments:
                arguments.append(character)
            elif not self.is_call:
                self._held.append(character)
            if self.is_done:
                break
        if arguments:
            events.append(CallArguments("".join(arguments)))
        if self.is_done and not self.is_call:
            events += self._whole_call()
        return events, num_read

    def _read(self, character: str) -> None:
        if self._is_in_string:
            self._read_in_string(character)
        elif character == '"':
            self._is_in_string = True
            self._string.clear()
        elif character in "{[":
            self._depth += 1
            self._is_in_arguments = self._is_in_arguments or (
                self._depth == 2
                and character == "{"
                and self._is_value
                and self._key in _ARGUMENT_KEYS
                and self._name in self._names
                and not self.is_call
            )
        elif character in "}]":
            self._depth -= 1
            if self._depth == 1:
                self._is_in_arguments = False
            self.is_done = self._depth == 0
        elif self._depth == 1 and character in ":,":
            self._is_value = character == ":"

    def _read_in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_in_string = False
            if self._depth == 1:
                self._end_of_member("".join(self._string))
            return
        if self._depth == 1:
            self._string.append(character)

    def _end_of_member(self, string: str) -> None:
        if not self._is_value:
            self._key = string
        elif self._key == "name":
            self._name = string

    def _whole_call(self) -> list[Event]:
        """Return the events of an object whose arguments come first, are text, or are missing."""
        call = _parsed(self.held_text)
        if call is None or call.get("name") not in self._names:
            return []
        arguments = next((call[key] for key in _ARGUMENT_KEYS if key in call), None)
        if isinstance(arguments, str):
            arguments = _parsed(arguments)
        elif arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            return []
        self.is_call = True
        self._held.clear()
        return [CallStart(call["name"]), CallArguments(json_text(arguments))]


def json_text(value: Any) -> str:
    """Return a value as JSON that can be sent: lone surrogates stay escaped.

    Raises:
        ValueError, TypeError: the value is not valid JSON.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _parsed(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; return None if the text is anything else."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
