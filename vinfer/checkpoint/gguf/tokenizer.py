"""Builds tokenizer.json from the vocabulary in a GGUF file.

Runs in the build half, on any thread. Each tokenizer model has its own file; what they share is here: the
named tokens, the special tokens around a text, and the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from vinfer.checkpoint.chat_templates import ChatTemplates
from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.gguf.byte_level import build_byte_level, read_splitting
from vinfer.checkpoint.gguf.sentencepiece import build_sentencepiece, read_pieces
from vinfer.checkpoint.gguf.vocabulary import read_vocabulary
from vinfer.checkpoint.tokenizer_files import TokenizerFiles
from vinfer.errors import CheckpointError


def build_tokenizer_files(metadata: Mapping[str, object], where: str) -> TokenizerFiles:
    """Build the tokenizer from `tokenizer.*` metadata.

    Raises:
        CheckpointError: an unsupported tokenizer model, an unknown splitting rule, or malformed vocabulary.
    """
    keys = ConfigKeys(metadata, where)
    model = keys.string("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise keys.refusal(
            "tokenizer.ggml.model",
            "only gpt2 (byte-level BPE) and llama (SentencePiece BPE) are supported in GGUF: use the model's "
            "Hugging Face directory",
        )
    vocabulary = read_vocabulary(keys) if model == "gpt2" else read_pieces(keys)
    bos, eos, pad, unk = (
        _special_token(keys, f"tokenizer.ggml.{key}_token_id", vocabulary.tokens)
        for key in ("bos", "eos", "padding", "unknown")
    )
    if model == "gpt2":
        splitting = read_splitting(keys)
        tokenizer, adds_bos = build_byte_level(keys, vocabulary, splitting), splitting.adds_bos
    else:
        tokenizer, adds_bos = build_sentencepiece(keys, vocabulary, unk_token=unk), True
    begin = bos if keys.boolean("tokenizer.ggml.add_bos_token", adds_bos) else None
    end = eos if keys.boolean("tokenizer.ggml.add_eos_token", False) else None
    if begin is not None or end is not None:
        tokenizer.post_processor = _post_processor(keys, tokenizer, begin, end)
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str(),
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        unk_token=unk,
        templates=ChatTemplates(
            keys.string("tokenizer.chat_template", "") or None,
            keys.string("tokenizer.chat_template.tool_use", "") or None,
        ),
    )


def _post_processor(
    keys: ConfigKeys, tokenizer: Tokenizer, begin: str | None, end: str | None
) -> TemplateProcessing:
    special = [token for token in (begin, end) if token is not None]
    first, second = (
        " ".join(f"{item}:{part}" for item in (begin, text, end) if item is not None)
        for part, text in enumerate(("$A", "$B"))
    )
    try:
        return TemplateProcessing(
            single=first,
            pair=f"{first} {second}",
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in special],
        )
    except Exception as error:  # the package raises bare Exception and ValueError
        raise CheckpointError(
            f"{keys.where}: {' and '.join(map(repr, special))} cannot be added around a text ({error}): "
            "tokenizer.ggml.bos_token_id or tokenizer.ggml.eos_token_id is wrong"
        ) from error


def _special_token(keys: ConfigKeys, key: str, tokens: list[str]) -> str | None:
    if not keys.has(key):
        return None
    return tokens[keys.integer(key, minimum=0, maximum=len(tokens) - 1)]
