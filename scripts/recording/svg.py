"""Writes frames as one SVG file that plays them in a loop; a viewer without animation shows the last one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from xml.sax.saxutils import escape

from recording.capture import Frame
from recording.screen import Cell, Style

_CHAR_WIDTH, _LINE_HEIGHT, _MARGIN = 8.4, 18, 14
_MAX_FRAMES = 24
_FONTS = "ui-monospace,SFMono-Regular,Menlo,Consolas,monospace"


def as_svg(frames: Sequence[Frame], *, columns: int, title: str) -> str:
    """Return the file."""
    chosen = _chosen(frames)
    width = round(columns * _CHAR_WIDTH + 2 * _MARGIN)
    height = max(len(frame.rows) for frame in chosen) * _LINE_HEIGHT + 2 * _MARGIN
    total = sum(frame.seconds for frame in chosen)
    starts = [0.0, *itertools.accumulate(frame.seconds for frame in chosen)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
        f'<g font-family="{_FONTS}" font-size="14" fill="#c9d1d9">',
    ]
    for number, (frame, start) in enumerate(zip(chosen, starts, strict=False)):
        is_last = number == len(chosen) - 1
        parts.append(f'<g visibility="{"visible" if is_last else "hidden"}">')
        if len(chosen) > 1:
            parts.append(_timing(start / total, (start + frame.seconds) / total, total))
        parts += [
            _line(row, _MARGIN + (place + 0.75) * _LINE_HEIGHT) for place, row in enumerate(frame.rows) if row
        ]
        parts.append("</g>")
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _chosen(frames: Sequence[Frame]) -> list[Frame]:
    """Return at most so many frames: the first, the last, and others evenly."""
    if len(frames) <= _MAX_FRAMES:
        return list(frames)
    step = (len(frames) - 1) / (_MAX_FRAMES - 1)
    return [frames[round(place * step)] for place in range(_MAX_FRAMES)]


def _timing(start: float, end: float, total: float) -> str:
    """Return what makes a frame visible during its part of the loop."""
    values, times = ["hidden", "visible", "hidden"], [0.0, start, end]
    if start == 0:
        values, times = values[1:], times[1:]
    if end >= 1:
        values, times = values[:-1], times[:-1]
    return (
        '<animate attributeName="visibility" calcMode="discrete" repeatCount="indefinite" '
        f'dur="{total:.1f}s" '
        f'values="{";".join(values)}" keyTimes="{";".join(f"{time:.4f}" for time in times)}"/>'
    )


def _line(row: Sequence[Cell], y: float) -> str:
    spans = []
    column = 0
    for style, cells in itertools.groupby(row, key=lambda cell: cell[1]):
        text = "".join(char for char, _ in cells)
        if text.strip():
            spans.append(
                f'<tspan x="{_MARGIN + column * _CHAR_WIDTH:.1f}"{_attributes(style)}>{escape(text)}</tspan>'
            )
        column += len(text)
    return f'<text y="{y:.1f}" xml:space="preserve">{"".join(spans)}</text>'


def _attributes(style: Style) -> str:
    color = "" if style.color is None else f' fill="{style.color}"'
    bold = ' font-weight="bold"' if style.is_bold else ""
    return color + bold + (' fill-opacity="0.6"' if style.is_dim else "")
