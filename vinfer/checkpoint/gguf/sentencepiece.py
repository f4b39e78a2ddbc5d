"""Builds SentencePiece BPE tokenizers (`tokenizer.ggml.model = llama`) from GGUF metadata.

Runs in the build half, on any thread. Llama 2, Mistral and Gemma have tokenizers of this kind: pieces with
scores instead of merges, `▁` for a space, and byte tokens for what the pieces cannot spell.

SentencePiece joins the two neighbors whose joint piece scores highest, leftmost first among equals. Merges
ordered by the score of their result give the same tokens, with one exception: where two ways to make the
same piece overlap (`a|aa|a`), the first merge wins here and the leftmost one wins in SentencePiece.

Source: `bpe_model.cc` of SentencePiece (Google); `SpmConverter` of transformers; `llm_tokenizer_spm` of
llama.cpp.
"""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback, Decoder, Fuse, Strip
from tokenizers.decoders import Replace as ReplaceDecoder
from tokenizers.decoders import Sequence as DecoderSequence
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer, Prepend, Replace, Sequence

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.gguf.vocabulary import (
    TokenType,
    Vocabulary,
    add_tokens,
    check_distinct,
    read_scores,
    read_vocabulary,
)
from vinfer.errors import CheckpointError

SPACE = "\u2581"
MAX_PIECE_CHARACTERS = 256
"""SentencePiece trains pieces of 16 by default; every way to split a piece in two is tried."""
MAX_MERGES = 2**22
"""Gemma 3, with the largest vocabulary of this kind, needs 0.5 million."""


def read_pieces(keys: ConfigKeys) -> Vocabulary:
    """Read the vocabulary; user-defined tokens are spelled like pieces, as converters turn `▁` into spaces.

    Raises:
        CheckpointError: see `read_vocabulary`.
    """
    vocabulary = read_vocabulary(keys)
    if _adds_space(keys):
        return vocabulary
    tokens = [
        token.replace(" ", SPACE) if type_ == TokenType.USER_DEFINED else token
        for token, type_ in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]
    check_distinct(keys, tokens)
    return Vocabulary(tokens, vocabulary.types)


def build_sentencepiece(keys: ConfigKeys, vocabulary: Vocabulary, *, unk_token: str | None) -> Tokenizer:
    """Build everything but the post-processor.

    Raises:
        CheckpointError: scores or byte tokens are missing or malformed, a piece is too long, or the
            normalization of text is unsupported.
    """
    _refuse_normalization(keys)
    adds_space = _adds_space(keys)
    scores = read_scores(keys, len(vocabulary.tokens))
    tokenizer = Tokenizer(
        BPE(
            vocab=vocabulary.ids(),
            merges=_merges(keys, vocabulary, scores),
            unk_token=unk_token,
            fuse_unk=True,
            byte_fallback=_has_byte_tokens(keys, vocabulary),
        )
    )
    tokenizer.normalizer = _normalizer(adds_space)
    tokenizer.decoder = _decoder(adds_space)
    add_tokens(
        tokenizer,
        special=vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN),
        user_defined=vocabulary.of_type(TokenType.USER_DEFINED),
        # As in SentencePiece, except where a space is put before the text: `tokenizers` would also put one
        # before the token that it looks for. There, tokens are found in the text as sent, as in llama.cpp.
        are_normalized=not adds_space,
    )
    return tokenizer


def _refuse_normalization(keys: ConfigKeys) -> None:
    if keys.boolean("tokenizer.ggml.remove_extra_whitespaces", False):
        raise keys.refusal("tokenizer.ggml.remove_extra_whitespaces", "only false is supported")
    if keys.has("tokenizer.ggml.precompiled_charsmap"):
        raise CheckpointError(
            f"{keys.where} has tokenizer.ggml.precompiled_charsmap: character normalization cannot be built "
            "from GGUF: use the model's Hugging Face directory, which has its own tokenizer.json"
        )


def _adds_space(keys: ConfigKeys) -> bool:
    return keys.boolean("tokenizer.ggml.add_space_prefix", True)


def _merges(keys: ConfigKeys, vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """List each way to make a piece of two others, best piece first.

    Skips byte, control and unknown tokens, which text cannot spell, user-defined tokens, which are found
    before merging, and unused ones, which nothing produces.
    """
    pieces = vocabulary.of_type(TokenType.NORMAL)
    longest = max(map(len, pieces), default=0)
    if longest > MAX_PIECE_CHARACTERS:
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.tokens has a piece of {longest} characters; "
            f"limit {MAX_PIECE_CHARACTERS}: the file is corrupt"
        )
    score_of = dict(zip(vocabulary.tokens, scores, strict=True))
    known = frozenset(pieces)
    cuts = (
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -score_of[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    )
    merges = list(itertools.islice(cuts, MAX_MERGES + 1))
    if len(merges) > MAX_MERGES:
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.tokens has more than {MAX_MERGES} ways to make one piece of two: "
            "the file is corrupt"
        )
    return merges


def _has_byte_tokens(keys: ConfigKeys, vocabulary: Vocabulary) -> bool:
    found = set(vocabulary.of_type(TokenType.BYTE))
    if not found:
        return False
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - found
    if missing:
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.tokens lacks {len(missing)} of 256 byte tokens, first "
            f"{min(missing)}: the file is corrupt"
        )
    return True


def _normalizer(adds_space: bool) -> Normalizer:
    """Replace spaces by `▁`; if `adds_space`, put one before a text and after each special token."""
    spaces = Replace(" ", SPACE)
    return Sequence([Prepend(SPACE), spaces]) if adds_space else spaces


def _decoder(adds_space: bool) -> Decoder:
    steps = [ReplaceDecoder(SPACE, " "), ByteFallback(), Fuse()]
    return DecoderSequence([*steps, Strip(" ", 1, 0)] if adds_space else steps)
