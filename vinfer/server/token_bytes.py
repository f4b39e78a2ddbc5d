"""The bytes of one token by itself, as logprobs show it: with its leading space, and half characters too.

Pure functions. `Tokenizer.decode` does not do: it strips spaces and replaces half characters.
"""

from __future__ import annotations

from vinfer.text.tokenizer import Tokenizer


def token_bytes(tokenizer: Tokenizer, token_id: int) -> bytes:
    """Give the bytes that a token stands for; none for an id outside the vocabulary."""
    spelled = tokenizer.id_to_token(token_id) or ""
    if token_id in tokenizer.special_ids:
        return spelled.encode()
    if "ByteLevel" in tokenizer.decoder_types:
        try:
            return bytes(map(_BYTE_OF_CHARACTER.__getitem__, spelled))
        except KeyError:  # an added token is spelled as it reads
            return spelled.encode()
    if len(spelled) == 6 and spelled.startswith("<0x") and spelled.endswith(">"):
        return bytes.fromhex(spelled[3:5])
    return spelled.replace("\u2581", " ").encode()


def _byte_characters() -> dict[str, int]:
    """Give the characters that byte-level BPE writes for the 256 bytes.

    Source: GPT-2 (OpenAI): printable Latin-1 stands for itself, the rest for U+0100 and up in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_characters()
