"""Reads and checks the vocabulary of a GGUF file: its tokens and the type of each.

Runs in the build half, on any thread. Knows no tokenizer model.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Collection
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.errors import CheckpointError


class TokenType(enum.IntEnum):
    """Values of `tokenizer.ggml.token_type`. Source: `llama_token_type` of llama.cpp."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True, slots=True)
class Vocabulary:
    """Token i has text `tokens[i]` and type `types[i]`; no text occurs twice."""

    tokens: list[str]
    types: list[int]

    def of_type(self, *types: TokenType) -> list[str]:
        """List the tokens of these types, in order of their ids."""
        return [token for token, type_ in zip(self.tokens, self.types, strict=True) if type_ in types]

    def ids(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.tokens)}


def read_vocabulary(keys: ConfigKeys) -> Vocabulary:
    """Read `tokenizer.ggml.tokens` and `tokenizer.ggml.token_type`.

    Raises:
        CheckpointError: a list is missing or of the wrong length, or a token occurs twice.
    """
    tokens = read_strings(keys, "tokenizer.ggml.tokens")
    types: list[int] = _numbers(keys, "tokenizer.ggml.token_type", len(tokens), kinds="iu")
    check_distinct(keys, tokens)
    return Vocabulary(tokens, types)


def read_strings(keys: ConfigKeys, key: str) -> list[str]:
    """Read a list of strings that must not be empty."""
    value = keys.values.get(key)
    if not isinstance(value, list) or not value:
        raise CheckpointError(f"{keys.where} has no list of strings {key}: the file has no tokenizer")
    return value


def read_scores(keys: ConfigKeys, num_tokens: int) -> list[float]:
    """Read `tokenizer.ggml.scores`: one finite number per token.

    Raises:
        CheckpointError: missing, of the wrong length, or not finite.
    """
    key = "tokenizer.ggml.scores"
    scores: list[float] = _numbers(keys, key, num_tokens, kinds="f")
    if not all(map(math.isfinite, scores)):
        raise CheckpointError(f"{keys.where}: {key} must be finite: the file is corrupt")
    return scores


def check_distinct(keys: ConfigKeys, tokens: Collection[str]) -> None:
    """Reject a vocabulary in which two ids have the same text."""
    num_doubles = len(tokens) - len(set(tokens))
    if num_doubles:
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.tokens holds {num_doubles} tokens twice: the file is corrupt"
        )


def _numbers(keys: ConfigKeys, key: str, num_tokens: int, *, kinds: str) -> list[Any]:
    value = keys.values.get(key)
    if not isinstance(value, np.ndarray) or len(value) != num_tokens or value.dtype.kind not in kinds:
        expected = "one floating-point number" if kinds == "f" else "one integer"
        raise CheckpointError(f"{keys.where}: {key} must hold {expected} for each of {num_tokens} tokens")
    return list(value.tolist())


def add_tokens(
    tokenizer: Tokenizer, special: list[str], user_defined: list[str], *, are_normalized: bool
) -> None:
    """Add tokens that are found in text before it is split; only `special` ones are omitted when decoding.

    Args:
        are_normalized: user-defined tokens are matched in the normalized text, not in the text as sent.
    """
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens(
        [AddedToken(token, special=False, normalized=are_normalized) for token in user_defined]
    )
