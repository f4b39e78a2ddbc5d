"""Finds a fixed string in text that arrives in pieces."""

from __future__ import annotations


def split_at_marker(text: str, marker: str) -> tuple[str, bool, str]:
    """Split a text at the first `marker`.

    Returns:
        The text before it, whether it was found, and the rest: what follows the marker, or the end of the
        text if that may be the beginning of a marker.
    """
    start = text.find(marker)
    if start >= 0:
        return text[:start], True, text[start + len(marker) :]
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return text[:-length], False, text[-length:]
    return text, False, ""
