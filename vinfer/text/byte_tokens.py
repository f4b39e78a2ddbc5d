"""Byte tokens of SentencePiece vocabularies: `<0xE2>` stands for one byte of a character without a piece."""

from __future__ import annotations

import re

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>", re.ASCII)


def byte_of_token(token: str) -> int | None:
    """Return the byte that a token is spelled as, or None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return None if match is None else int(match[1], 16)
