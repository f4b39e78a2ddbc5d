"""Finds stop strings in text that arrives in pieces.

One object per request, on the event loop. Does not know tokens.

The match that is complete first wins; of two that end on the same character, the longer one. So the result
does not depend on how the text is split into pieces, and generation can end at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class StopResult:
    """Text that may be shown now, and the stop string that ended it, if any (not part of the text)."""

    text: str
    matched: str | None = None


class StopStrings:
    """Holds back the shortest suffix of the text that could still become a stop string.

    Linear in the text for each stop string (Knuth-Morris-Pratt), whatever the strings are.

    Args:
        stop: the stop strings, none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        assert all(stop), "an empty stop string matches everything; the caller refuses it"
        self._stop = sorted(set(stop), key=lambda string: (-len(string), string))
        self._borders = [_borders(string) for string in self._stop]
        self._lengths = [0] * len(self._stop)
        self._held = ""
        self._is_done = False

    def push(self, text: str) -> StopResult:
        """Read more text and return what may be shown. Text after a match is dropped."""
        if self._is_done:
            return StopResult("")
        if not self._stop:
            return StopResult(text)
        seen = self._held + text
        for end, character in enumerate(text, start=len(self._held) + 1):
            for index, string in enumerate(self._stop):
                length, borders = self._lengths[index], self._borders[index]
                while length and string[length] != character:
                    length = borders[length - 1]
                if string[length] == character:
                    length += 1
                if length == len(string):
                    self._is_done, self._held = True, ""
                    return StopResult(seen[: end - length], string)
                self._lengths[index] = length
        shown = len(seen) - max(self._lengths)
        self._held = seen[shown:]
        return StopResult(seen[:shown])

    def flush(self) -> str:
        """Return the text held back; no more will come."""
        held, self._held = self._held, ""
        self._is_done = True
        return held


def _borders(string: str) -> list[int]:
    """Return, for each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(string)
    length = 0
    for end in range(1, len(string)):
        while length and string[length] != string[end]:
            length = borders[length - 1]
        if string[length] == string[end]:
            length += 1
        borders[end] = length
    return borders
