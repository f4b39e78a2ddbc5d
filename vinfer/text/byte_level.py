"""The 256 characters that byte-level BPE writes for bytes."""

from __future__ import annotations


def _byte_characters() -> dict[str, int]:
    """Return the byte that each character stands for.

    Source: GPT-2 (OpenAI): printable Latin-1 stands for itself, the rest for U+0100 and up in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_OF_CHARACTER = _byte_characters()
