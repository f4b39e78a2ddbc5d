"""Splits an answer into text and tool calls as it arrives, by the model's `ToolFormat`.

One object per choice, on the event loop. Linear in the answer: each character is read a fixed number of
times. A call to a tool that was not offered, or one that cannot be parsed, is text.
"""

from __future__ import annotations

import enum
from collections.abc import Collection

from vinfer.text.marker import split_at_marker
from vinfer.text.tool_calls.events import CallStart, Event, Text
from vinfer.text.tool_calls.formats import ToolFormat
from vinfer.text.tool_calls.json_call import JsonCall
from vinfer.text.tool_calls.pythonic_call import PythonicCall, is_name_character

_PIECE_LEN = 64


class _State(enum.Enum):
    TEXT = enum.auto()
    GAP = enum.auto()
    CALL = enum.auto()
    CLOSING = enum.auto()
    BEGINNING = enum.auto()
    PLAIN = enum.auto()


class ToolCallParser:
    """Parses one answer.

    White space next to calls belongs to neither text nor calls, so it is held until it is known what follows.

    Attributes:
        is_cut: the answer ended inside of a call whose name was not known yet, so nothing is shown of it.

    Args:
        names: names of the tools that may be called.
        calls_come_first: an answer that does not begin with a call has none, whatever its text contains.
    """

    def __init__(
        self, tool_format: ToolFormat, names: Collection[str], *, calls_come_first: bool = False
    ) -> None:
        self.is_cut = False
        self._format = tool_format
        self._names = names
        self._calls_come_first = calls_come_first
        self._state = _State.GAP if tool_format.begins_with_call else _State.TEXT
        if calls_come_first:
            self._state = _State.BEGINNING
        self._unread = ""
        self._call: JsonCall | PythonicCall = JsonCall(names)
        self._has_calls = False
        self._is_after_call = False
        # Held white space, which becomes text if no call follows.
        self._spaces: list[str] = []
        self._gap: list[str] = []

    def push(self, text: str) -> list[Event]:
        """Read more of the answer and return its events."""
        events: list[Event] = []
        # Cutting off the beginning copies the rest, so read the text in short pieces.
        for start in range(0, len(text), _PIECE_LEN):
            self._unread += text[start : start + _PIECE_LEN]
            self._read(events)
        return events

    def _read(self, events: list[Event]) -> None:
        steps = {
            _State.TEXT: self._read_text,
            _State.GAP: self._read_gap,
            _State.CALL: self._read_call,
            _State.CLOSING: self._read_closing,
            _State.BEGINNING: self._read_beginning,
            _State.PLAIN: self._read_plain,
        }
        while self._unread and steps[self._state](events):
            pass

    def finish(self, *, must_call: bool = False, is_cut: bool = False) -> list[Event]:
        """Return the events that are left at the end of the answer.

        Args:
            must_call: the answer is constrained to calls, so what is left is the beginning of one.
            is_cut: the answer ended because it may not be longer; a call that had begun is not text.
        """
        unread, self._unread = self._unread, ""
        # A marker of one character, as in Pythonic calls, may begin a text as well.
        has_begun = self._state is not _State.TEXT and self._gap[:1] == [self._format.opening]
        has_begun &= len(self._format.opening) > 1
        if must_call or (is_cut and has_begun):
            self.is_cut = True
            return []
        if self._state is _State.CLOSING or (self._state is _State.CALL and self._call.is_call):
            return []
        is_inside = self._state in (_State.GAP, _State.CALL) and self._format.opening in "".join(self._gap)
        if self._calls_come_first and (self._has_calls or is_inside):
            # Only calls follow a marker or a call, so what was cut off is no text.
            self.is_cut = True
            return []
        held = "".join(self._spaces) + "".join(self._gap)
        if self._state is _State.CALL:
            held += self._call.held_text
        held += unread
        if self._is_after_call:
            held = held.lstrip()
        is_mere_space = self._has_calls and not held.strip(self._format.gap)
        return [] if is_mere_space or not held else [Text(held)]

    def _read_text(self, events: list[Event]) -> bool:
        before, found, self._unread = split_at_marker(self._unread, self._format.opening)
        self._say(before, events)
        if found:
            self._gap = [self._format.opening]
            self._state = _State.GAP
        return found

    def _read_beginning(self, _events: list[Event]) -> bool:
        """Decide whether the answer begins with a call."""
        opening = self._format.opening
        begun = self._unread.lstrip()
        if len(begun) < len(opening) and opening.startswith(begun):
            return False
        if begun.startswith(opening):
            self._state = _State.TEXT
        else:
            self._state = _State.GAP if self._format.begins_with_call else _State.PLAIN
        return True

    def _read_plain(self, events: list[Event]) -> bool:
        events.append(Text(self._unread))
        self._unread = ""
        return False

    def _read_gap(self, events: list[Event]) -> bool:
        rest = self._unread.lstrip(self._format.gap)
        self._gap.append(self._unread[: len(self._unread) - len(rest)])
        self._unread = rest
        if not rest:
            return True
        if self._is_after_call and not "".join(self._gap).strip(self._format.gap):
            self._gap = []
        if rest[0] == "{":
            self._call = JsonCall(self._names)
            self._state = _State.CALL
        elif self._format.is_pythonic and is_name_character(rest[0]):
            self._call = PythonicCall(self._names)
            self._state = _State.CALL
        else:
            self._give_up(events)
        return True

    def _read_call(self, events: list[Event]) -> bool:
        found, num_read = self._call.push(self._unread)
        self._unread = self._unread[num_read:]
        if any(isinstance(event, CallStart) for event in found):
            self._has_calls = self._is_after_call = True
            self._spaces, self._gap = [], []
        events += found
        if self._call.is_done:
            if not self._call.is_call:
                self._gap.append(self._call.held_text)
                self._give_up(events)
            else:
                self._state = _State.CLOSING if self._format.repeats_markers else _State.GAP
        return True

    def _read_closing(self, _events: list[Event]) -> bool:
        rest = self._unread.lstrip(self._format.gap)
        closing = self._format.closing
        if len(rest) < len(closing) and closing.startswith(rest):
            self._unread = rest
            return False
        # Some models forget the closing marker.
        self._unread = rest.removeprefix(closing)
        self._state = _State.TEXT
        return True

    def _give_up(self, events: list[Event]) -> None:
        """Emit the held characters as text, because no call follows."""
        gap, self._gap = "".join(self._gap), []
        if self._calls_come_first and not self._has_calls:
            self._state = _State.PLAIN
            if gap:
                events.append(Text(gap))
            return
        self._state = _State.TEXT
        self._say(gap, events)

    def _say(self, text: str, events: list[Event]) -> None:
        if self._is_after_call:
            text = text.lstrip()
        said = text.rstrip()
        if said:
            events.append(Text("".join(self._spaces) + said))
            self._spaces = []
            self._is_after_call = False
        if len(said) < len(text):
            self._spaces.append(text[len(said) :])
