"""Converts token ids to text, a few at a time, without ever showing half a character.

One object per request, on the event loop; each token costs the same however long the answer is. Knows only
the tokenizer. The joined pieces equal `Tokenizer.decode` of all ids, with one exception. If byte tokens
(`<0xE2>`) are not valid UTF-8, `decode` replaces the whole run, including its valid characters, by one U+FFFD
per byte. Those characters have already been shown here, so only the invalid bytes become U+FFFD.

`tokenizers.DecodeStream` is not used. It raises "Invalid prefix" on such a run, holds text back forever after
invalid bytes while decoding all of it again with each token, and has no flush.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from vinfer.text.token_bytes import BYTE_OF_CHARACTER, byte_of_token
from vinfer.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
_PROMPT_TAIL_LEN = 8
_MAX_HELD_TOKENS = 8
"""A character has at most four bytes, so twice as many tokens cannot still be waiting for its end."""


class Detokenizer:
    """The text of one request.

    Args:
        skip_special_tokens: leave special tokens out of the text, except for `shown_special_ids`.
        prompt_tail: the last ids of the prompt if the text continues it (eight are enough). A leading space
            is then kept, and a character that the prompt began is shown whole once the answer completes it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown_special_ids: Collection[int] = (),
        prompt_tail: Sequence[int] = (),
    ) -> None:
        is_byte_level = [name for name in tokenizer.decoder_types if name != "Sequence"] == ["ByteLevel"]
        self._decoder: _StreamDecoder = (
            _ByteLevelDecoder(tokenizer) if is_byte_level else _WindowDecoder(tokenizer)
        )
        skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._skipped = skipped.difference(shown_special_ids)
        self._decoder.prime(self._shown(prompt_tail[-_PROMPT_TAIL_LEN:]))

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens complete."""
        return self._decoder.push(self._shown(token_ids))

    def flush(self) -> str:
        """Return the text that was held back, with U+FFFD for a character that was never completed."""
        return self._decoder.flush()

    def _shown(self, token_ids: Iterable[int]) -> list[int]:
        return [token_id for token_id in token_ids if token_id not in self._skipped]


class _StreamDecoder(Protocol):
    def prime(self, token_ids: list[int]) -> None:
        """Read the end of the prompt, whose text is not shown."""
        ...

    def push(self, token_ids: list[int]) -> str: ...

    def flush(self) -> str: ...


class _Utf8:
    """Converts bytes to characters; knows whether the prompt began an incomplete character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_inherited = False

    @property
    def is_waiting(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def inherit(self) -> None:
        self._is_inherited = self.is_waiting

    def push(self, new: bytes) -> str:
        if self._is_inherited and new:
            if new[0] & 0xC0 != 0x80:
                self._decoder.reset()
            self._is_inherited = False
        return self._decoder.decode(new)

    def flush(self) -> str:
        """Return the replacement for an incomplete character; nothing if all of it came from the prompt."""
        if self._is_inherited:
            self._decoder.reset()
            self._is_inherited = False
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class _ByteLevelDecoder:
    """Byte-level BPE: every token is a run of bytes, so the text is one UTF-8 stream."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = _Utf8()

    def prime(self, token_ids: list[int]) -> None:
        self.push(token_ids)
        self._utf8.inherit()

    def push(self, token_ids: list[int]) -> str:
        return self._utf8.push(b"".join(map(self._bytes, token_ids)))

    def flush(self) -> str:
        return self._utf8.flush()

    def _bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id) or ""
        try:
            return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))
        except KeyError:  # an added token is plain text
            return token.encode()


class _WindowDecoder:
    """Any other decoder: new tokens are decoded together with the previous ones to see what they add.

    A decoder may treat the first token differently (strip its space, remove `##`). Decoding therefore starts
    with the tokens of the last piece of text, so that a new token is never the first. Byte tokens are
    collected here until they form whole characters.

    Source: the prefix and read offsets of text-generation-inference (Hugging Face).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._has_bytes = "ByteFallback" in tokenizer.decoder_types
        self._before: list[int] = []
        self._text_before = ""
        self._pending: list[int] = []
        self._pending_bytes: list[int] = []
        self._utf8 = _Utf8()

    def prime(self, token_ids: list[int]) -> None:
        self.push(token_ids)
        self._pending = []
        self._utf8.inherit()

    def push(self, token_ids: list[int]) -> str:
        pieces = []
        for token_id in token_ids:
            token = self._tokenizer.id_to_token(token_id)
            if token is None:
                continue
            byte = byte_of_token(token) if self._has_bytes else None
            if byte is None:
                pieces.append(self._end_bytes())
                self._pending.append(token_id)
            else:
                pieces.append(self._show_pending(is_final=True))
                pieces.append(self._push_byte(token_id, byte))
        pieces.append(self._show_pending(is_final=False))
        return "".join(pieces)

    def flush(self) -> str:
        return self._end_bytes() + self._show_pending(is_final=True)

    def _show_pending(self, *, is_final: bool) -> str:
        if not self._pending:
            return ""
        text = self._tokenizer.decode(self._before + self._pending, skip_special_tokens=False)
        is_whole = text.startswith(self._text_before) and not text.endswith(REPLACEMENT)
        if not (is_whole or is_final or len(self._pending) >= _MAX_HELD_TOKENS):
            return ""
        new = text[len(self._text_before) :]
        self._stand_before(self._pending)
        self._pending = []
        return new

    def _push_byte(self, token_id: int, byte: int) -> str:
        text = self._utf8.push(bytes((byte,)))
        self._pending_bytes.append(token_id)
        if self._utf8.is_waiting:
            if text:
                self._pending_bytes = [token_id]
            return text
        unit, self._pending_bytes = self._pending_bytes, []
        if REPLACEMENT in text:
            self._stand_before_nothing()
            return text
        self._pending = unit
        return self._show_pending(is_final=True)

    def _end_bytes(self) -> str:
        text = self._utf8.flush()
        if text:
            self._stand_before_nothing()
        self._pending_bytes = []
        return text

    def _stand_before(self, token_ids: list[int]) -> None:
        self._before = token_ids
        self._text_before = self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def _stand_before_nothing(self) -> None:
        """Put a valid token before the next ones: invalid bytes there would spoil the next run of bytes."""
        placeholder = self._tokenizer.token_to_id("<0x21>")
        if placeholder is not None:
            self._stand_before([placeholder])
