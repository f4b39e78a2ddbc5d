"""A model's tokens as llguidance needs them: the bytes of each id, and how forced text is tokenized.

llguidance could read tokenizer.json itself, but would then treat `</s>` inside a string that a grammar
requires as the end token. Here text is never tokenized as a control token.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence

from vinfer.errors import RequestError


class GrammarVocabulary:
    """The object that `llguidance.LLTokenizer` takes; its attributes have the names that it expects.

    Args:
        tokens: the bytes of each id, leading spaces included; the bytes of control tokens do not matter.
        special_ids: ids of the control tokens.
        eos_token_ids: tokens that may follow a complete answer; at least one.
        encode: returns the ids of a text, none of them special. It may raise RequestError, or change the
            text as tokenizers with a normalizer do; the longest matching tokens are then used instead.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self,
        tokens: Sequence[bytes],
        *,
        special_ids: Collection[int],
        eos_token_ids: Sequence[int],
        encode: Callable[[str], Sequence[int]],
    ) -> None:
        self.tokens = list(tokens)
        self.special_token_ids = sorted({*special_ids, *eos_token_ids})
        self.eos_token_ids = tuple(eos_token_ids)
        self.eos_token_id = eos_token_ids[0]
        self._encode = encode
        special = set(self.special_token_ids)
        self._ids = {token: i for i, token in enumerate(self.tokens) if token and i not in special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        """Return ids whose bytes are exactly those of the text.

        Raises:
            ValueError: no token begins with one of the bytes.
        """
        try:
            token_ids = list(self._encode(text))
        except RequestError:
            token_ids = []
        if b"".join(self.tokens[token_id] for token_id in token_ids) == text.encode():
            return token_ids
        return self._by_longest_tokens(text.encode())

    def misspellings(self, text: bytes) -> list[int]:
        """Return the tokens that are a proper prefix of a text but not how the tokenizer begins it.

        Args:
            text: the forced text, perhaps with more after it; it may begin or end within a character.
        """
        if len(text) < 2:
            return []
        try:
            whole_characters, _ = codecs.utf_8_decode(text)
        except UnicodeDecodeError:
            return []
        first = self(whole_characters)[:1]
        beginnings = (text[:length] for length in range(1, min(len(text), self._longest + 1)))
        begun = [self._ids[beginning] for beginning in beginnings if beginning in self._ids]
        return [token_id for token_id in begun if first and token_id not in first]

    def _by_longest_tokens(self, text: bytes) -> list[int]:
        token_ids: list[int] = []
        start = 0
        while start < len(text):
            ends = range(min(start + self._longest, len(text)), start, -1)
            end = next((end for end in ends if text[start:end] in self._ids), None)
            if end is None:
                raise ValueError(f"no token begins with byte {text[start]:#04x}")
            token_ids.append(self._ids[text[start:end]])
            start = end
        return token_ids
