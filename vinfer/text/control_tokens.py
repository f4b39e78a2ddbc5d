"""Distinguishes special-token strings that a user typed from those that the chat template wrote.

Owns the marks that are put into user strings before a template runs, and `RenderedPrompt`, the text after
they are removed again. Pure functions of strings, run on worker threads. Knows neither the tokenizer nor the
template language.

A template concatenates text, so after rendering, a `<|im_end|>` from a message looks like the template's own.
Therefore a character that occurs nowhere in the input (the mark) is put *inside* each special-token string of
the user (`<M|im_end|>`). No part of the marked text can then be read as a special token, however the template
slices or joins it. A value that ends with the beginning of such a string (`<|im_`) gets a mark there, so that
the next value cannot complete it. Only a template that deletes text inside a message can defeat this.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Collection, Iterator
from typing import Any

from vinfer.errors import RequestError

_MARKS = tuple(map(chr, (*range(0xA000, 0xA48D), *range(0x20000, 0x2A6D0))))
"""Yi syllables, then rare ideographs: printable (`repr` keeps them), caseless, and `strip` keeps them."""

_SCALAR_LEN = 16


@dataclasses.dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """A chat as text, with the special tokens that really are special.

    Attributes:
        text: the prompt as a person reads it.
        control_spans: (start, end) in `text` of each special token that the template itself wrote.
        has_user_specials: whether another part of `text` looks like a special token but is plain text.
    """

    text: str
    control_spans: tuple[tuple[int, int], ...] = ()
    has_user_specials: bool = False


class ControlTokens:
    """The special-token strings of one tokenizer. Immutable: safe from any thread.

    Strings of one character are left out: users must be able to type a newline even if it is a control token.
    """

    def __init__(self, strings: Collection[str]) -> None:
        kept = sorted({string for string in strings if len(string) > 1})
        self._is_empty = not kept
        trie = _trie_pattern(kept)
        self._token = re.compile(trie)
        self._token_start = re.compile(f"(?={trie})(.)", re.DOTALL)
        # Beginnings that are plain words get no mark, because templates compare roles and types.
        self._beginnings = {
            string[:length]
            for string in kept
            for length in range(1, len(string))
            if not string[:length].replace("_", "a").isalnum()
        }
        self._first_characters = frozenset(string[0] for string in kept)
        self._max_len = max(map(len, kept), default=0)

    def choose_mark(self, value: Any, *, avoid: frozenset[str]) -> str | None:
        """Return the character that marks user strings, or None if `value` needs no mark.

        Args:
            value: nested dicts, lists and scalars, as parsed from JSON.
            avoid: characters of the template.

        Raises:
            RequestError: the input contains every character that could be a mark.
        """
        if self._is_empty or not any(self._needs_mark(string) for string in _strings(value)):
            return None
        return unused_character(value, avoid=avoid)

    def mark(self, value: Any, mark: str) -> Any:
        """Return a copy of `value` in which no string, keys included, contains a special token."""
        if isinstance(value, str):
            if self._ends_in_beginning(value):
                end = len(value.rstrip())
                value = value[:end] + mark + value[end:]
            return self._token_start.sub(rf"\1{mark}", value)
        if isinstance(value, dict):
            return {self.mark(key, mark): self.mark(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.mark(item, mark) for item in value]
        return value

    def unmark(self, rendered: str, mark: str | None) -> RenderedPrompt:
        """Remove the marks from a rendered template and record which special tokens are its own."""
        if self._is_empty:
            return RenderedPrompt(rendered)
        if mark is None or mark not in rendered:
            return RenderedPrompt(rendered, self.spans(rendered))
        spans = []
        pieces = []
        length = read = 0
        for match in self._token.finditer(rendered):
            before = rendered[read : match.start()].replace(mark, "")
            start, read = length + len(before), match.end()
            length = start + len(match[0])
            spans.append((start, length))
            pieces += [before, match[0]]
        text = "".join(pieces) + rendered[read:].replace(mark, "")
        control_spans = tuple(spans)
        return RenderedPrompt(text, control_spans, has_user_specials=self.spans(text) != control_spans)

    def spans(self, text: str) -> tuple[tuple[int, int], ...]:
        """Return (start, end) of every special-token string in a text."""
        return tuple(match.span() for match in self._token.finditer(text))

    def _needs_mark(self, string: str) -> bool:
        return self._token.search(string) is not None or self._ends_in_beginning(string)

    def _ends_in_beginning(self, string: str) -> bool:
        tail = string.rstrip()[-self._max_len :]
        return any(
            character in self._first_characters and tail[start:] in self._beginnings
            for start, character in enumerate(tail)
        )


def unused_character(value: Any, *, avoid: frozenset[str]) -> str:
    """Return a character that occurs nowhere in `value`, survives any template, and is not in `avoid`.

    Raises:
        RequestError: the input contains every character that could be used.
    """
    used = avoid.union(*_strings(value))
    for mark in _MARKS:
        if mark not in used:
            return mark
    raise RequestError(
        "messages use too many different characters: send fewer of them, or without special-token strings",
        param="messages",
    )


def text_len(value: Any) -> int:
    """Count the characters of all strings and keys in `value`; any other scalar counts as 16."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(text_len(key) + text_len(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(map(text_len, value))
    return _SCALAR_LEN


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in itertools.chain(value.keys(), value.values()):
            yield from _strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _strings(part)


def _trie_pattern(strings: Collection[str]) -> str:
    """Return a pattern that matches the longest of `strings`, in time independent of their number.

    Some tokenizers have thousands with the same beginning; a flat alternation would try each at every `<`.
    """
    root: dict[str, Any] = {}
    for string in strings:
        node = root
        for character in string:
            node = node.setdefault(character, {})
        node[""] = {}

    def pattern(node: dict[str, Any]) -> str:
        branches = [re.escape(character) + pattern(child) for character, child in node.items() if character]
        if not branches:
            return ""
        is_end = "" in node
        if len(branches) == 1 and not is_end:
            return branches[0]
        return f"(?:{'|'.join(branches)})" + ("?" if is_end else "")

    return pattern(root) or r"(?!)"
