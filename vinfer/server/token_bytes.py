"""The bytes of one token by itself, as logprobs show it: with its leading space, and half characters too.

Pure functions. `Tokenizer.decode` does not do: it strips spaces and replaces half characters.
"""

from __future__ import annotations

from vinfer.text.byte_level import BYTE_OF_CHARACTER
from vinfer.text.byte_tokens import byte_of_token
from vinfer.text.tokenizer import Tokenizer

_SPACE_WRITERS = frozenset({"Metaspace", "Replace"})
"""Decoders that make a space of each `▁`."""


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Give the bytes that a token stands for; none for an id outside the vocabulary."""
    spelled = tokenizer.id_to_token(token_id) or ""
    if token_id in tokenizer.special_ids:
        return spelled.encode()
    if "ByteLevel" in tokenizer.decoder_types:
        try:
            return bytes(map(BYTE_OF_CHARACTER.__getitem__, spelled))
        except KeyError:  # an added token is spelled as it reads
            return spelled.encode()
    byte = byte_of_token(spelled) if "ByteFallback" in tokenizer.decoder_types else None
    if byte is not None:
        return bytes((byte,))
    if _SPACE_WRITERS.isdisjoint(tokenizer.decoder_types):
        return spelled.encode()
    return spelled.replace("\u2581", " ").encode()
