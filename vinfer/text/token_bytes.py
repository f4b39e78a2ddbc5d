"""The bytes of tokens: byte-level BPE's characters, SentencePiece's byte tokens, and any single token.

Pure functions. A token's bytes keep its leading space and incomplete characters, as logprobs show them.
`Tokenizer.decode` would strip spaces and replace incomplete characters.
"""

from __future__ import annotations

import re

from vinfer.text.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>", re.ASCII)


def byte_of_token(token: str) -> int | None:
    """Return the byte of a byte token such as `<0xE2>`, or None for any other token."""
    match = _BYTE_TOKEN.fullmatch(token)
    return None if match is None else int(match[1], 16)


def _byte_characters() -> dict[str, int]:
    """Return the byte that each character stands for.

    Source: GPT-2 (OpenAI): printable Latin-1 stands for itself; U+0100 and up stand for the rest, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_characters()


_SPACE_WRITERS = frozenset({"Metaspace", "Replace"})
"""Decoders that replace each `▁` with a space."""


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Return the bytes that a token stands for; empty for an id outside the vocabulary."""
    spelled = tokenizer.id_to_token(token_id) or ""
    if token_id in tokenizer.special_ids:
        return spelled.encode()
    if "ByteLevel" in tokenizer.decoder_types:
        try:
            return bytes(map(BYTE_OF_CHARACTER.__getitem__, spelled))
        except KeyError:  # an added token is plain text
            return spelled.encode()
    byte = byte_of_token(spelled) if "ByteFallback" in tokenizer.decoder_types else None
    if byte is not None:
        return bytes((byte,))
    if _SPACE_WRITERS.isdisjoint(tokenizer.decoder_types):
        return spelled.encode()
    return spelled.replace("\u2581", " ").encode()
