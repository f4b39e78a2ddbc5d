"""Builds byte-level BPE tokenizers (`tokenizer.ggml.model = gpt2`) from GGUF metadata.

Runs in the build half, on any thread. GGUF stores tokens and merges but only a *name* for the rule
that splits text into words. Each supported name is spelled out here and any other is rejected:
transformers' own conversion guesses, and is wrong for SmolLM2 (a space becomes <|endoftext|>).
"""

from __future__ import annotations

import dataclasses

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.gguf.vocabulary import TokenType, Vocabulary, add_tokens, read_strings
from vinfer.errors import CheckpointError


@dataclasses.dataclass(frozen=True, slots=True)
class Splitting:
    """The rule behind one name: how text is split into words, and related defaults of that family.

    Attributes:
        pattern: regular expression for words; None for GPT-2's.
        splits_digits: each digit is a separate word, before the GPT-2 pattern.
        adds_bos: the default if the file does not say.
    """

    pattern: str | None = None
    splits_digits: bool = False
    normalizes_nfc: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False


def _llama3_pattern(digits: str) -> str:
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


# Each matches the family's original tokenizer.json. `default` is absent on purpose: converters write it
# when they did not recognize the tokenizer.
_SPLITTINGS = {
    "gpt-2": Splitting(),
    "smollm": Splitting(splits_digits=True),
    "llama-bpe": Splitting(_llama3_pattern(r"\p{N}{1,3}"), ignores_merges=True, adds_bos=True),
    "qwen2": Splitting(_llama3_pattern(r"\p{N}"), normalizes_nfc=True),
}


def read_splitting(keys: ConfigKeys) -> Splitting:
    """Look up `tokenizer.ggml.pre`.

    Raises:
        CheckpointError: an unknown name.
    """
    name = keys.string("tokenizer.ggml.pre", "default")
    if name not in _SPLITTINGS:
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.pre = {name!r}; supported: {', '.join(_SPLITTINGS)}: "
            "use the model's Hugging Face directory, which has its own tokenizer.json"
        )
    return _SPLITTINGS[name]


def build_byte_level(keys: ConfigKeys, vocabulary: Vocabulary, splitting: Splitting) -> Tokenizer:
    """Build everything but the post-processor.

    Raises:
        CheckpointError: `tokenizer.ggml.merges` is missing or does not fit the vocabulary.
    """
    merges = [tuple(merge.split(" ")) for merge in read_strings(keys, "tokenizer.ggml.merges")]
    try:
        model = BPE(vocab=vocabulary.ids(), merges=merges, ignore_merges=splitting.ignores_merges)
    except Exception as error:  # the package raises bare Exception and TypeError
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.merges do not match the tokens ({error})"
        ) from error
    tokenizer = Tokenizer(model)
    if splitting.normalizes_nfc:
        tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(splitting)
    tokenizer.decoder = ByteLevelDecoder()
    add_tokens(
        tokenizer,
        special=vocabulary.of_type(TokenType.CONTROL),
        user_defined=vocabulary.of_type(TokenType.USER_DEFINED),
        are_normalized=False,
    )
    return tokenizer


def _pre_tokenizer(splitting: Splitting) -> PreTokenizer:
    if splitting.pattern is not None:
        return Sequence(
            [
                Split(Regex(splitting.pattern), behavior="isolated"),
                ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    words = ByteLevel(add_prefix_space=False, use_regex=True)
    return Sequence([Digits(individual_digits=True), words]) if splitting.splits_digits else words
