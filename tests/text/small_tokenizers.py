"""Tokenizers of the common kinds, small enough to build in a test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

SPECIALS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
WORDS = ("the", "cat", "sat", "héllo", "日本", "user", "system", "ing", "!")


def _bpe_vocab(alphabet: list[str], words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the special tokens, the alphabet, and each word with the merges that build it from the left."""
    vocab = {token: index for index, token in enumerate((*SPECIALS, *alphabet))}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    return vocab, merges


def byte_level() -> FastTokenizer:
    """GPT-2, Llama 3, Qwen."""
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [spell.pre_tokenize_str(prefix + word)[0][0] for prefix in (" ", "") for word in WORDS]
    vocab, merges = _bpe_vocab(sorted(pre_tokenizers.ByteLevel.alphabet()), words)
    fast = FastTokenizer(models.BPE(vocab=vocab, merges=merges))
    fast.pre_tokenizer = spell
    fast.decoder = decoders.ByteLevel()
    return fast


def byte_level_and_more() -> FastTokenizer:
    """Byte-level with a decoder of more than one step."""
    fast = byte_level()
    fast.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("sat", "SAT")])
    return fast


def _sentencepiece_model(*more_pieces: str) -> models.BPE:
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *map(chr, range(0x21, 0x7F))]
    words = [prefix + word for prefix in ("▁", "") for word in WORDS[:3]]
    vocab, merges = _bpe_vocab([*alphabet, *more_pieces], words)
    return models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)


def sentencepiece_legacy() -> FastTokenizer:
    """Llama 2: the normalizer writes the spaces, and the decoder strips the first one."""
    fast = FastTokenizer(_sentencepiece_model())
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast


def llama() -> FastTokenizer:
    """Llama 2 and Mistral as transformers 5 writes them: one space before the text, which is not decoded."""
    fast = FastTokenizer(_sentencepiece_model())
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast


def gemma() -> FastTokenizer:
    """Gemma: no space is added or removed; runs of newlines and of spaces are tokens that are not special."""
    runs = ["\n", "\n\n", "▁▁", "▁▁▁", "<table>"]
    fast = FastTokenizer(_sentencepiece_model(*runs))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_tokens([AddedToken(run, normalized=run.startswith("▁")) for run in runs])
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast


def metaspace_first() -> FastTokenizer:
    """Newer SentencePiece conversions: only the beginning of the text gets a space."""
    fast = FastTokenizer(_sentencepiece_model())
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return fast


def wordpiece() -> FastTokenizer:
    pieces = ["the", "cat", "sat", "##s", "##ing", ".", ",", "'", "<", ">", "|", "im", "_", "end", "a", "b"]
    vocab = {token: index for index, token in enumerate((*SPECIALS, *pieces))}
    fast = FastTokenizer(models.WordPiece(vocab=vocab, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece(cleanup=True)
    return fast


def unigram() -> FastTokenizer:
    """Unigram: its search finds special tokens as words of the vocabulary."""
    pieces = [(token, 0.0) for token in SPECIALS] + [(token, -3.0) for token in ("▁", "▁the", "▁cat")]
    pieces += [(character, -5.0) for character in map(chr, range(0x21, 0x7F))]
    fast = FastTokenizer(models.Unigram(pieces, unk_id=0))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    fast.decoder = decoders.Metaspace(prepend_scheme="first")
    return fast


def no_decoder() -> FastTokenizer:
    vocab = {token: index for index, token in enumerate((*SPECIALS, *WORDS))}
    fast = FastTokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), behavior="removed")
    return fast


KINDS: dict[str, Callable[[], FastTokenizer]] = {
    kind.__name__: kind
    for kind in (
        byte_level,
        byte_level_and_more,
        sentencepiece_legacy,
        llama,
        gemma,
        metaspace_first,
        wordpiece,
        unigram,
        no_decoder,
    )
}


def write_tokenizer(directory: Path, fast: FastTokenizer, **special_tokens: str | None) -> Path:
    """Write a bundle's tokenizer directory; the specials are marked special in tokenizer.json."""
    directory.mkdir(parents=True, exist_ok=True)
    known = {token.content for token in fast.get_added_tokens_decoder().values()}
    missing = [token for token in SPECIALS if token not in known]
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    fast.save(str(directory / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "unk_token": "<unk>"}
    content = {**named, "additional_special_tokens": [], **special_tokens}
    (directory / "special_tokens.json").write_text(json.dumps(content), encoding="utf-8")
    return directory
