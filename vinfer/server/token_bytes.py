"""The bytes of one token by itself, as logprobs show it: with its leading space, and half characters too.

Pure functions. `Tokenizer.decode` does not do: it strips spaces and replaces half characters.
"""

from __future__ import annotations

from vinfer.text.byte_level import BYTE_OF_CHARACTER
from vinfer.text.tokenizer import Tokenizer


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
    if len(spelled) == 6 and spelled.startswith("<0x") and spelled.endswith(">"):
        return bytes.fromhex(spelled[3:5])
    return spelled.replace("\u2581", " ").encode()
