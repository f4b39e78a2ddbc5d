"""Builds tokenizer.json from the vocabulary that a GGUF file carries.

Runs in the build half, on any thread. GGUF stores tokens and merges but only a *name* for the rule
that splits text into words, so each served name is spelled out here and any other is refused:
transformers' own conversion guesses, and is wrong for SmolLM2 (a space becomes <|endoftext|>).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from tokenizers.processors import TemplateProcessing

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.tokenizer_files import TokenizerFiles
from vinfer.errors import CheckpointError

# Values of tokenizer.ggml.token_type.
_CONTROL, _USER_DEFINED = 3, 4


@dataclasses.dataclass(frozen=True, slots=True)
class _Splitting:
    """The rule behind one name: how text becomes words, and what goes with it in that family.

    Attributes:
        pattern: regular expression of the words; None for that of GPT-2.
        splits_digits: every digit is a word of its own, before the GPT-2 pattern.
        adds_bos: what holds where the file does not say.
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


# Each is what the original tokenizer.json of the family says. `default` is absent on purpose: it is what
# converters write when they did not recognise the tokenizer.
_SPLITTINGS = {
    "gpt-2": _Splitting(),
    "smollm": _Splitting(splits_digits=True),
    "llama-bpe": _Splitting(_llama3_pattern(r"\p{N}{1,3}"), ignores_merges=True, adds_bos=True),
    "qwen2": _Splitting(_llama3_pattern(r"\p{N}"), normalizes_nfc=True),
}


def build_tokenizer_files(metadata: Mapping[str, object], where: str) -> TokenizerFiles:
    """Build the tokenizer from `tokenizer.*` metadata.

    Raises:
        CheckpointError: another tokenizer model, an unknown splitting rule, or malformed vocabulary.
    """
    keys = ConfigKeys(metadata, where)
    if keys.string("tokenizer.ggml.model") != "gpt2":
        raise keys.refusal(
            "tokenizer.ggml.model",
            "only gpt2 (byte-level BPE) is built from GGUF yet: take the model's Hugging Face directory",
        )
    name = keys.string("tokenizer.ggml.pre", "default")
    if name not in _SPLITTINGS:
        raise CheckpointError(
            f"{where}: tokenizer.ggml.pre = {name!r}: splitting rules known: {', '.join(_SPLITTINGS)}: "
            "take the model's Hugging Face directory, which carries its own tokenizer.json"
        )
    splitting = _SPLITTINGS[name]
    tokens = _strings(keys, "tokenizer.ggml.tokens")
    tokenizer = _bpe(keys, tokens, splitting)
    bos, eos, pad, unk = (
        _special_token(keys, f"tokenizer.ggml.{key}_token_id", tokens)
        for key in ("bos", "eos", "padding", "unknown")
    )
    if bos is not None and keys.boolean("tokenizer.ggml.add_bos_token", splitting.adds_bos):
        tokenizer.post_processor = _bos_processor(keys, bos, tokens)
    template = keys.string("tokenizer.chat_template", "")
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str(),
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=unk,
        chat_template=template or None,
    )


def _bpe(keys: ConfigKeys, tokens: list[str], splitting: _Splitting) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.tokens holds {len(tokens) - len(vocab)} tokens twice: "
            "the file is corrupt"
        )
    types = keys.values.get("tokenizer.ggml.token_type")
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.token_type must hold one number for each of {len(tokens)} tokens"
        )
    merges = [tuple(merge.split(" ")) for merge in _strings(keys, "tokenizer.ggml.merges")]
    try:
        model = BPE(vocab=vocab, merges=merges, ignore_merges=splitting.ignores_merges)
    except Exception as error:  # the package raises bare Exception and TypeError
        raise CheckpointError(
            f"{keys.where}: tokenizer.ggml.merges do not fit the tokens ({error})"
        ) from error
    tokenizer = Tokenizer(model)
    if splitting.normalizes_nfc:
        tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer(splitting)
    tokenizer.decoder = ByteLevelDecoder()
    special = [token for token, type_ in zip(tokens, types.tolist(), strict=True) if type_ == _CONTROL]
    plain = [token for token, type_ in zip(tokens, types.tolist(), strict=True) if type_ == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    return tokenizer


def _pre_tokenizer(splitting: _Splitting) -> PreTokenizer:
    if splitting.pattern is not None:
        return Sequence(
            [
                Split(Regex(splitting.pattern), behavior="isolated"),
                ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    words = ByteLevel(add_prefix_space=False, use_regex=True)
    return Sequence([Digits(individual_digits=True), words]) if splitting.splits_digits else words


def _bos_processor(keys: ConfigKeys, bos: str, tokens: list[str]) -> TemplateProcessing:
    try:
        return TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokens.index(bos))]
        )
    except Exception as error:  # the package raises bare Exception and ValueError
        raise keys.refusal("tokenizer.ggml.bos_token_id", f"{bos!r} cannot begin a text ({error})") from error


def _strings(keys: ConfigKeys, key: str) -> list[str]:
    value = keys.values.get(key)
    if not isinstance(value, list) or not value:
        raise CheckpointError(f"{keys.where} has no list of strings {key}: the file carries no tokenizer")
    return value


def _special_token(keys: ConfigKeys, key: str, tokens: list[str]) -> str | None:
    if not keys.has(key):
        return None
    return tokens[keys.integer(key, minimum=0, maximum=len(tokens) - 1)]
