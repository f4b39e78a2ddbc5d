"""Finds how much text one token can stand for, so that a prompt that is too long is refused unread.

Pure functions of a tokenizer's parts, run once per model. Where a tokenizer may drop text, or make one token
of text of any length, there is no such number.
"""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers

# How much shorter a text can become: NFKC makes one byte of a mathematical letter, which has four; NFC one
# syllable of three letters of Hangul; a lower-case k has one byte, and the Kelvin sign three.
_SHRINKAGE = {"NFC": 3, "NFD": 1, "NFKC": 4, "NFKD": 4, "Lowercase": 3, "Prepend": 1, "ByteLevel": 1}
_KEEPING_PRE_TOKENIZERS = {"ByteLevel", "Metaspace", "Digits", "UnicodeScripts"}
_SPLITTING_PRE_TOKENIZERS = {"Split", "Punctuation", "CharDelimiterSplit"}
# All characters for which `str.isspace` is true.
_ASCII_WHITE_SPACE = " \n\t\r\v\f\x1c\x1d\x1e\x1f"
_OTHER_WHITE_SPACE = "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# How the byte level spells spaces, tabs and line ends.
_SPACES = str.maketrans("", "", "ĠĉĊč")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def max_bytes_per_token(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Return the most bytes of text, white space aside, that become one token; None if any number may."""
    parts = json.loads(tokenizer.to_str())
    shrinkage = _shrinkage(parts["normalizer"])
    if shrinkage is None or not _keeps_text(parts["pre_tokenizer"]) or not _covers_every_byte(parts):
        return None
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    longest = max(map(num_dense_bytes, added), default=1)
    is_byte_level = _is_byte_level(parts)
    for token in parts["model"]["vocab"]:
        # At the byte level a character stands for a byte; elsewhere a bar stands for a space.
        own = token.translate(_SPACES) if is_byte_level else token.replace("▁", "")
        longest = max(longest, len(own) if is_byte_level else len(own.encode()))
    return shrinkage * longest


def num_dense_bytes(text: str) -> int:
    """Return the bytes of a text without white space, which some tokens swallow in any length."""
    spaces = _ASCII_WHITE_SPACE if text.isascii() else _ASCII_WHITE_SPACE + _OTHER_WHITE_SPACE
    return len(text.encode()) - sum(text.count(space) * len(space.encode()) for space in spaces)


def _shrinkage(normalizer: dict[str, Any] | None) -> int | None:
    """Return by which factor a normalizer shortens text at most; None if it may drop any of it."""
    if normalizer is None:
        return 1
    kind = normalizer["type"]
    if kind == "Sequence":
        product = 1
        for part in normalizer["normalizers"]:
            factor = _shrinkage(part)
            if factor is None:
                return None
            product *= factor
        return product
    if kind == "Replace":
        pattern = normalizer["pattern"].get("String")
        # One space may become nothing: it does not count.
        return 1 if pattern == " " else None
    return _SHRINKAGE.get(kind)


def _keeps_text(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Return whether everything but white space reaches the model."""
    if pre_tokenizer is None:
        return True
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return all(_keeps_text(part) for part in pre_tokenizer["pretokenizers"])
    if kind in _SPLITTING_PRE_TOKENIZERS:
        return str(pre_tokenizer.get("behavior", "Removed")) != "Removed"
    return kind in _KEEPING_PRE_TOKENIZERS


def _covers_every_byte(parts: dict[str, Any]) -> bool:
    """Return whether no text is unknown: unknown text may be dropped, or become one token in any length."""
    model = parts["model"]
    if model["type"] != "BPE":
        return False
    if model.get("byte_fallback"):
        return sum(1 for token in model["vocab"] if _BYTE_TOKEN.fullmatch(token)) == 256
    alphabet = set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return _is_byte_level(parts) and alphabet <= set(parts["model"]["vocab"])


def _is_byte_level(parts: dict[str, Any]) -> bool:
    return _has_byte_level(parts["pre_tokenizer"], "pretokenizers") or _has_byte_level(
        parts["normalizer"], "normalizers"
    )


def _has_byte_level(part: dict[str, Any] | None, children: str) -> bool:
    if part is None:
        return False
    if part["type"] == "Sequence":
        return any(_has_byte_level(child, children) for child in part[children])
    return bool(part["type"] == "ByteLevel")
