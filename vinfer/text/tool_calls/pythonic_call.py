"""Parses one tool call that a model writes as a Python call with keyword arguments: `f(city="Oslo", days=2)`.

The call is read character by character and emitted as a whole once it is complete. Nothing is evaluated:
arguments are literals, parsed by `ast` within limits of length and depth.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Collection
from typing import Any

from vinfer.text.tool_calls.events import CallArguments, CallStart, Event
from vinfer.text.tool_calls.json_call import json_text

MAX_BODY_CHARS = 16_384
"""Most characters between the parentheses; anything longer is text."""
MAX_DEPTH = 32
_MAX_NAME_CHARS = 64
# Some models write JSON's constants.
_WORDS = {"true": True, "false": False, "null": None}


class PythonicCall:
    """One call, from the first letter of its name to its closing parenthesis; same interface as `JsonCall`.

    Args:
        names: names of the tools that may be called.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.is_done = False
        self.is_call = False
        self._names = names
        self._name: list[str] = []
        self._body: list[str] | None = None
        self._depth = 0
        self._quote = ""
        self._is_escaped = False

    @property
    def held_text(self) -> str:
        """The text read so far, as long as it is not known to be a call."""
        if self.is_call:
            return ""
        name = "".join(self._name)
        return name if self._body is None else f"{name}({''.join(self._body)}"

    def push(self, text: str) -> tuple[list[Event], int]:
        """Read more of the call.

        Returns:
            The new events, and how many characters were read: fewer than given once `is_done`.
        """
        for num_read, character in enumerate(text):
            if self._body is None:
                if not self._read_name(character):
                    return [], num_read
                continue
            self._body.append(character)
            self._read_body(character)
            if self.is_done:
                return self._whole_call("".join(self._body[:-1])), num_read + 1
        return [], len(text)

    def _read_name(self, character: str) -> bool:
        if character == "(" and "".join(self._name) in self._names:
            self._body = []
        elif is_name_character(character) and len(self._name) < _MAX_NAME_CHARS:
            self._name.append(character)
        else:
            self.is_done = True
        return not self.is_done

    def _read_body(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif self._quote:
            self._is_escaped = character == "\\"
            self._quote = "" if character == self._quote else self._quote
        elif character in "\"'":
            self._quote = character
        elif character in "([{":
            self._depth += 1
        elif character in ")]}":
            self._depth -= 1
        assert self._body is not None
        self.is_done = self._depth < 0 or self._depth > MAX_DEPTH or len(self._body) > MAX_BODY_CHARS

    def _whole_call(self, body: str) -> list[Event]:
        arguments = _keyword_arguments(body) if self._depth < 0 else None
        if arguments is None:
            return []
        self.is_call = True
        return [CallStart("".join(self._name)), CallArguments(arguments)]


def is_name_character(character: str) -> bool:
    """Return whether a tool's name may contain this character."""
    return character.isascii() and (character.isalnum() or character in "_-")


def _keyword_arguments(body: str) -> str | None:
    """Return keyword arguments as a JSON object; None if they are anything but literals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown escapes in strings
            call = ast.parse(f"f({body})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            return None
        arguments: dict[str, Any] = {}
        for keyword in call.keywords:
            if keyword.arg is None:
                return None
            arguments[keyword.arg] = ast.literal_eval(_JsonWords().visit(keyword.value))
        return json_text(arguments)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


class _JsonWords(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_WORDS[node.id]) if node.id in _WORDS else node
