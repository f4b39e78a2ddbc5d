"""Separates reasoning, the text in `<think>` tags at the beginning, from the answer as it arrives.

One object per choice, on the event loop; linear in the answer. White space around the tags belongs to
neither.
"""

from __future__ import annotations

import enum

from vinfer.text.marker import split_at_marker
from vinfer.text.tool_calls.events import Reasoning, Text

OPENING = "<think>"
CLOSING = "</think>"


class _State(enum.Enum):
    START = enum.auto()
    INSIDE = enum.auto()
    AFTER = enum.auto()
    ANSWER = enum.auto()


class ReasoningParser:
    """Splits one answer.

    Args:
        is_open: whether the prompt already ends with the opening tag, which some chat templates write.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._state = _State.INSIDE if is_open else _State.START
        self._unread = ""
        self._spaces: list[str] = []
        self._is_blank = True

    def push(self, text: str) -> list[Text | Reasoning]:
        """Read more of the answer and return what is known to be text or reasoning."""
        events: list[Text | Reasoning] = []
        self._unread += text
        if self._state is _State.START:
            self._read_start()
        if self._state is _State.INSIDE:
            self._read_inside(events)
        if self._state is _State.AFTER:
            self._unread = self._unread.lstrip()
            if self._unread:
                self._state = _State.ANSWER
        if self._state is _State.ANSWER:
            said, self._spaces = "".join(self._spaces) + self._unread, []
            self._unread = ""
            if said:
                events.append(Text(said))
        return events

    def finish(self) -> list[Text | Reasoning]:
        """Return what is left at the end of the answer."""
        unread, self._unread = self._unread, ""
        if self._state is _State.START:
            held = "".join(self._spaces) + unread
            return [Text(held)] if held else []
        if self._state is _State.INSIDE and unread:
            return [Reasoning("".join(self._spaces) + unread)]
        return []

    def _read_start(self) -> None:
        rest = self._unread.lstrip()
        self._spaces.append(self._unread[: len(self._unread) - len(rest)])
        self._unread = rest
        if rest.startswith(OPENING):
            self._unread = rest.removeprefix(OPENING)
            self._spaces = []
            self._state = _State.INSIDE
        elif not OPENING.startswith(rest):
            self._state = _State.ANSWER

    def _read_inside(self, events: list[Text | Reasoning]) -> None:
        thought, found, self._unread = split_at_marker(self._unread, CLOSING)
        if self._is_blank:
            thought = thought.lstrip()
        said = thought.rstrip()
        if said:
            events.append(Reasoning("".join(self._spaces) + said))
            self._spaces = []
            self._is_blank = False
        if len(said) < len(thought):
            self._spaces.append(thought[len(said) :])
        if found:
            self._spaces = []
            self._state = _State.AFTER
