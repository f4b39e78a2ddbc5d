"""Finds a fixed string in text that comes in pieces."""

from __future__ import annotations


def split_at_marker(text: str, marker: str) -> tuple[str, bool, str]:
    """Look for the first `marker`.

    Returns:
        The text before it, whether it was found, and the rest: what follows the marker, or the end of the
        text that may be its beginning.
    """
    start = text.find(marker)
    if start >= 0:
        return text[:start], True, text[start + len(marker) :]
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return text[:-length], False, text[-length:]
    return text, False, ""
