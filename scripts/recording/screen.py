"""A terminal's screen: takes what a program writes, keeps rows of styled characters.

Knows the control sequences that vinfer, rich, readline and pip write; it ignores others.
"""

from __future__ import annotations

import dataclasses
import re

_SEQUENCE = re.compile(
    r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[=>]|\x1b\][^\x07]*\x07|[\r\n\b\x07]|[^\x1b\r\n\b\x07]+|\x1b"
)
_UNFINISHED = re.compile(r"\x1b(\[[?0-9;]*|\][^\x07]*)?$")
_COLORS = ("#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#c9d1d9")
_CUBE = (0, 95, 135, 175, 215, 255)


@dataclasses.dataclass(frozen=True)
class Style:
    """How a character looks; None is the terminal's own color."""

    color: str | None = None
    is_bold: bool = False
    is_dim: bool = False


Cell = tuple[str, Style]
PLAIN = Style()


class Screen:
    """Rows that grow downwards; the caller shows the last ones."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._rows: list[list[Cell]] = [[]]
        self._row = self._column = 0
        self._style = PLAIN
        self._pending = ""

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        return [tuple(row) for row in self._rows]

    @property
    def text(self) -> str:
        return "\n".join("".join(char for char, _ in row).rstrip() for row in self._rows)

    def write(self, text: str) -> None:
        """Take what a program has written; a control sequence may come in two pieces."""
        text = self._pending + text
        self._pending = (_UNFINISHED.search(text) or [""])[0]
        for match in _SEQUENCE.finditer(text.removesuffix(self._pending)):
            piece = match[0]
            if match[2]:
                self._control(match[1], match[2])
            elif piece == "\r":
                self._column = 0
            elif piece == "\n":
                self._line_feed()
            elif piece == "\b":
                self._column = max(self._column - 1, 0)
            elif piece[0] not in "\x1b\x07":
                for char in piece:
                    self._put(char)

    def _put(self, char: str) -> None:
        if self._column == self._columns:
            self._column = 0
            self._line_feed()
        row = self._rows[self._row]
        row.extend([(" ", PLAIN)] * (self._column + 1 - len(row)))
        row[self._column] = (char, self._style)
        self._column += 1

    def _line_feed(self) -> None:
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append([])

    def _control(self, arguments: str, letter: str) -> None:
        numbers = [int(part) for part in arguments.split(";") if part.isdigit()]
        first = numbers[0] if numbers else 0
        row = self._rows[self._row]
        if letter == "m":
            self._style = _styled(self._style, numbers or [0])
        elif letter == "A":
            self._row = max(self._row - max(first, 1), 0)
        elif letter == "C":
            self._column = min(self._column + max(first, 1), self._columns - 1)
        elif letter == "G":
            self._column = max(first - 1, 0)
        elif letter == "K" and first == 0:
            del row[self._column :]
        elif letter == "K":
            row.clear()


def _styled(style: Style, numbers: list[int]) -> Style:
    """Return a style after `ESC [ numbers m`."""
    rest = list(numbers)
    while rest:
        number = rest.pop(0)
        if number == 0:
            style = PLAIN
        elif number in (1, 2):
            style = dataclasses.replace(style, is_bold=number == 1, is_dim=number == 2)
        elif number == 22:
            style = dataclasses.replace(style, is_bold=False, is_dim=False)
        elif number == 39:
            style = dataclasses.replace(style, color=None)
        elif 30 <= number <= 37 or 90 <= number <= 97:
            style = dataclasses.replace(style, color=_COLORS[number % 10])
        elif number == 38 and rest[:1] == [5]:
            style = dataclasses.replace(style, color=_indexed(rest[1]))
            del rest[:2]
    return style


def _indexed(index: int) -> str:
    """Return one of the 256 colors."""
    if index < 16:
        return _COLORS[index % 8]
    if index >= 232:
        return "#" + f"{8 + 10 * (index - 232):02x}" * 3
    red, rest = divmod(index - 16, 36)
    return "#" + "".join(f"{_CUBE[part]:02x}" for part in (red, *divmod(rest, 6)))
