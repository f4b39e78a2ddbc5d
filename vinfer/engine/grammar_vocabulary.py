"""A model's tokens as llguidance asks for them: bytes of each id, and how text that must follow is spelled.

llguidance could read tokenizer.json itself, but then takes `</s>` inside a string that a grammar demands for
the end token. Here no text is ever a control token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

from vinfer.errors import RequestError


class GrammarVocabulary:
    """The object that `llguidance.LLTokenizer` takes; its attributes have the names that it looks for.

    Args:
        tokens: the bytes that each id stands for, with leading spaces; of control tokens anything.
        special_ids: of control tokens.
        eos_token_ids: what may follow a complete answer; at least one.
        encode: spells text as ids, none of them special. It may raise RequestError, or change the text as
            tokenizers with a normalizer do; then the text is spelled by its longest tokens.
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

    def __call__(self, text: str) -> list[int]:
        """Spell text as ids whose bytes are exactly those of the text.

        Raises:
            ValueError: some byte has no token.
        """
        try:
            token_ids = list(self._encode(text))
        except RequestError:
            token_ids = []
        if b"".join(self.tokens[token_id] for token_id in token_ids) == text.encode():
            return token_ids
        return self._by_longest_tokens(text.encode())

    def _by_longest_tokens(self, text: bytes) -> list[int]:
        ids, longest = self._ids
        token_ids: list[int] = []
        start = 0
        while start < len(text):
            ends = range(min(start + longest, len(text)), start, -1)
            end = next((end for end in ends if text[start:end] in ids), None)
            if end is None:
                raise ValueError(f"no token begins with byte {text[start]:#04x}")
            token_ids.append(ids[text[start:end]])
            start = end
        return token_ids

    @functools.cached_property
    def _ids(self) -> tuple[dict[bytes, int], int]:
        special = set(self.special_token_ids)
        ids = {token: i for i, token in enumerate(self.tokens) if token and i not in special}
        return ids, max(map(len, ids), default=0)
