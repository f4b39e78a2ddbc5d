"""Whether an unknown key is probably a known one, misspelled. Pure functions, any thread."""

from __future__ import annotations

from collections.abc import Collection

# Names of this length may have one wrong character, and longer ones two.
_SHORT_LEN = 8
# Shorter names are spelled right, or mean something else.
_LEAST_LEN = 4
_MAX_KEY_CHARS = 64
# Keys of other APIs that only look like ours: Azure's answers have `context`.
_OTHER_KEYS = frozenset({"context"})


def near_miss(key: str, known: Collection[str]) -> str | None:
    """Return the known key that an unknown one probably stands for; None if it is something else.

    Case and separators do not count, so `toolCalls` stands for `tool_calls`.
    """
    plain = plain_key(key)
    if key in _OTHER_KEYS or len(plain) > _MAX_KEY_CHARS:
        return None
    best: tuple[int, str] | None = None
    for name in sorted(known):
        meant = plain_key(name)
        allowed = 0 if len(meant) < _LEAST_LEN else 1 if len(meant) < _SHORT_LEN else 2
        if abs(len(meant) - len(plain)) <= allowed:
            errors = num_typos(plain, meant)
            if errors <= allowed and (best is None or errors < best[0]):
                best = (errors, name)
    return None if best is None else best[1]


def num_typos(text: str, meant: str) -> int:
    """Return how many characters are wrong, missing, superfluous, or swapped with the next one.

    Source: the optimal string alignment distance, by Wagner and Fischer's algorithm.
    """
    before: list[int] = []
    row = list(range(len(meant) + 1))
    for i, character in enumerate(text, start=1):
        last, row, earlier = row, [i], before
        for j, wanted in enumerate(meant, start=1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (character != wanted))
            is_swapped = i > 1 and j > 1 and character == meant[j - 2] and text[i - 2] == wanted
            row.append(min(cost, earlier[j - 2] + 1) if is_swapped else cost)
        before = last
    return row[-1]


def plain_key(key: str) -> str:
    """Return a key without case and separators."""
    return "".join(character for character in key.lower() if character.isalnum())
