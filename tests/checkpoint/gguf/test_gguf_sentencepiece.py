"""SentencePiece tokenizers built from GGUF metadata, against the sentencepiece package itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemma_gguf import gemma_gguf
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer

from vinfer.checkpoint.gguf.file import open_gguf
from vinfer.checkpoint.gguf.sentencepiece import MAX_MERGES, MAX_PIECE_CHARACTERS
from vinfer.checkpoint.gguf.tokenizer import build_tokenizer_files
from vinfer.errors import CheckpointError

CONTROL = ["<pad>", "<eos>", "<bos>", "<start_of_turn>"]
RUNS = ("\n\n", "\n", "\u2581\u2581\u2581", "\u2581\u2581", "<b>")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# Best first. No piece has two overlapping derivations (see the module).
PIECES = [
    *(
        "\u2581t",
        "he",
        "\u2581the",
        "in",
        "er",
        "\u2581c",
        "at",
        "\u2581cat",
        "日本",
        "11",
        "ther",
        "\u2581a",
    ),
    *("\u2581", *"abcdehinrst123.,<>[]x0A", "é", "日", "本", "я"),
]
TOTAL = len(CONTROL) + 1 + len(RUNS) + 256 + len(PIECES) + 1
NORMAL, UNKNOWN, CONTROL_TYPE, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def _metadata(*, runs: Sequence[str] = RUNS, **changes: Any) -> dict[str, object]:
    """Return what llama.cpp's converter writes: spaces in user-defined tokens, scores falling with rank."""
    tokens = [*CONTROL, "<unk>", *(run.replace("\u2581", " ") for run in runs), *BYTES, *PIECES, "[PAD1]"]
    types = [CONTROL_TYPE] * 4 + [UNKNOWN] + [USER_DEFINED] * len(runs) + [BYTE] * 256
    types += [NORMAL] * len(PIECES) + [UNUSED]
    scores = [-1000.0] * (len(CONTROL) + 1 + len(runs)) + [0.0] * 256
    scores += [-float(rank) for rank in range(len(PIECES))] + [-1000.0]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 4,
        "tokenizer.ggml.add_space_prefix": False,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not ...}


def _tokenizer(**changes: Any) -> Tokenizer:
    return Tokenizer.from_str(build_tokenizer_files(_metadata(**changes), "x.gguf").tokenizer_json)


def _sentencepiece(*, runs: Sequence[str], adds_space: bool) -> SentencePieceProcessor:
    """Return the same vocabulary as a model of the sentencepiece package."""
    metadata: dict[str, Any] = _metadata(runs=runs)
    model = sentencepiece_model_pb2.ModelProto()
    for token, type_, score in zip(
        metadata["tokenizer.ggml.tokens"],
        metadata["tokenizer.ggml.token_type"].tolist(),
        metadata["tokenizer.ggml.scores"].tolist(),
        strict=True,
    ):
        piece = token.replace(" ", "\u2581") if type_ == USER_DEFINED else token
        model.pieces.add(piece=piece, type=type_, score=score)
    trainer = model.trainer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = 2, True, len(model.pieces)
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 4
    trainer.bos_piece, trainer.eos_piece, trainer.unk_piece, trainer.pad_piece = (
        "<bos>",
        "<eos>",
        "<unk>",
        "<pad>",
    )
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = adds_space
    model.normalizer_spec.remove_extra_whitespaces = False
    return SentencePieceProcessor(model_proto=model.SerializeToString())


TEXTS = st.lists(
    st.sampled_from(
        [*"abcdehinrst123.,<>[]x0A \n\té日本яш😀\x00", "the", " the", " cat", "  ", "    ", "<b>", "11"]
    ),
    max_size=20,
).map("".join) | st.text(max_size=8)
BY_PREFIX = {adds_space: _tokenizer(add_space_prefix=adds_space) for adds_space in (False, True)}
SENTENCEPIECE = {
    (runs, adds_space): (
        _sentencepiece(runs=runs, adds_space=adds_space),
        _tokenizer(runs=runs, add_space_prefix=adds_space),
    )
    for runs, adds_space in ((RUNS, False), ((), False), ((), True))
}


@pytest.mark.parametrize("kind", SENTENCEPIECE)
@given(text=TEXTS)
def test_ids_and_text_are_those_of_sentencepiece(kind: tuple[tuple[str, ...], bool], text: str) -> None:
    """Omit user-defined tokens if a space is put before the text: these follow llama.cpp, see below."""
    reference, tokenizer = SENTENCEPIECE[kind]
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == reference.decode(ids)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("the cat", ["t", "he", "▁cat"]),
        (" there", ["▁the", "r", "e"]),
        ("     x", ["▁▁▁", "▁▁", "x"]),
        ("\n\n\nx", ["\n\n", "\n", "x"]),
        ("ш", ["<0xD1>", "<0x88>"]),
        ("<b><0x0A>", ["<b>", "<", "0", "x", "0", "A", ">"]),
        ("日本é", ["日本", "é"]),
        ("[PAD1]", ["[", "<0x50>", "A", "<0x44>", "1", "]"]),
    ],
)
def test_pieces(text: str, tokens: list[str]) -> None:
    assert BY_PREFIX[False].encode(text, add_special_tokens=False).tokens == tokens


def test_control_tokens_are_special_and_the_others_are_not() -> None:
    tokenizer = BY_PREFIX[False]
    ids = tokenizer.encode("<start_of_turn>a<b><unk>\n\n<eos>", add_special_tokens=False).ids
    assert ids[:1] + ids[2:] == [3, 9, 4, 5, 1]
    assert tokenizer.decode(ids) == "a<b>\n\n"


@pytest.mark.parametrize(
    ("flags", "tokens"),
    [
        ({}, ["<bos>", "x"]),
        ({"add_bos_token": False}, ["x"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<bos>", "x", "<eos>"]),
        ({"add_bos_token": False, "add_eos_token": True}, ["x", "<eos>"]),
        ({"add_space_prefix": True}, ["<bos>", "▁", "x"]),
        ({"add_space_prefix": ...}, ["<bos>", "▁", "x"]),
        ({"bos_token_id": ...}, ["x"]),
    ],
)
def test_flags(flags: dict[str, Any], tokens: list[str]) -> None:
    assert _tokenizer(**flags).encode("x").tokens == tokens


def test_text_after_a_control_token_begins_with_a_space_as_in_llama_cpp() -> None:
    tokens = BY_PREFIX[True].encode("<bos>x<start_of_turn>the", add_special_tokens=False).tokens
    assert tokens == ["<bos>", "▁", "x", "<start_of_turn>", "▁the"]
    tokens = BY_PREFIX[True].encode("x<b>x  a", add_special_tokens=False).tokens
    assert tokens == ["▁", "x", "<b>", "▁", "x", "  ", "▁a"]


def test_without_byte_tokens_the_unknown_token_stands_for_what_has_no_piece() -> None:
    metadata: dict[str, Any] = _metadata()
    types = np.where(
        metadata["tokenizer.ggml.token_type"] == BYTE, UNUSED, metadata["tokenizer.ggml.token_type"]
    )
    assert _tokenizer(token_type=types).encode("aшшa", add_special_tokens=False).tokens == ["a", "<unk>", "a"]


def _changed(key: str, index: int, value: object) -> Any:
    values: Any = _metadata()[f"tokenizer.ggml.{key}"]
    values = values.copy()
    values[index] = value
    return values


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": ...}, "tokenizer.ggml.scores must hold one floating-point number for each of"),
        (
            {"scores": np.zeros(3, np.float32)},
            "tokenizer.ggml.scores must hold one floating-point number for each of",
        ),
        ({"scores": _changed("scores", 300, float("nan"))}, "tokenizer.ggml.scores must be finite"),
        ({"token_type": ...}, "tokenizer.ggml.token_type must hold one integer for each of"),
        ({"token_type": np.full(TOTAL, np.nan)}, "tokenizer.ggml.token_type must hold one integer"),
        ({"token_type": _changed("token_type", 20, NORMAL)}, "lacks 1 of 256 byte tokens, first <0x0A>"),
        ({"tokens": _changed("tokens", 5, "\u2581")}, "1 tokens twice"),
        ({"tokens": _changed("tokens", 5, " ")}, "1 tokens twice"),
        ({"tokens": _changed("tokens", -2, "a" * 257)}, f"257 characters; limit {MAX_PIECE_CHARACTERS}"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces = True: only false"),
        ({"precompiled_charsmap": np.zeros(4, np.uint8)}, "precompiled_charsmap"),
        ({"unknown_token_id": 10**6}, "unknown_token_id = 1000000"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_tokenizer_files(_metadata(**changes), "x.gguf")


def test_a_vocabulary_made_to_have_endless_merges_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its merges would take a hundred times the file's memory."""
    assert MAX_MERGES > 514_000
    monkeypatch.setattr("vinfer.checkpoint.gguf.sentencepiece.MAX_MERGES", 5)
    with pytest.raises(CheckpointError, match="more than 5 ways"):
        _tokenizer()


# Expected values from the sentencepiece package with the file's vocabulary.
GEMMA_3_IDS = [
    ("The capital of France is", [818, 5279, 529, 7001, 563]),
    ("  two spaces", [138, 13498, 9952]),
    ("a" + 40 * " " + "b", [236746, 167, 145, 236763]),
    ("\n\n\ntext\n", [109, 1005, 107]),
    ("\t\tif x:\r\n", [255969, 584, 1123, 236787, 251, 107]),
    ("1234567890", [236770, 236778, 236800, 236812, 236810, 236825, 236832, 236828, 236819, 236771]),
    (" 3.14", [236743, 236800, 236761, 236770, 236812]),
    ("naïve café e\u0301", [1789, 238527, 560, 33443, 545, 238288]),
    ("日本語のテキスト", [94951, 236945, 95830]),
    ("Привет, мир", [116130, 236764, 58562]),
    ("مرحبا بالعالم", [236873, 150345, 107602, 17193]),
    ("नमस्ते दुनिया", [226767, 19975]),
    ("한국어 문장", [114216, 237430, 16950, 237851]),
    (
        "\U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f3f3\ufe0f\u200d\U0001f308",
        [242398, 243767, 237243, 243767, 237243, 244814, 248177, 238178, 237243, 243712],
    ),
    ("<table><tr></table>", [168, 173, 176]),
    ("\x00\x7f", [238, 251541]),
    ("\U00012000a\U0001fa77", [247364, 236746, 255171]),
    ("a\u2581b", [236746, 518]),
    (" <0x0A> </s><s>", [655, 236771, 236781, 236771, 236776, 236813, 236743, 212, 203]),
    ("[multimodal]", [5]),
    ("=====-----aaaaaaa", [114302, 30104, 50354, 72004]),
]


def test_gemma_3(tmp_path: Path) -> None:
    metadata = open_gguf(gemma_gguf()).metadata
    tokenizer = Tokenizer.from_str(build_tokenizer_files(metadata, "gemma").tokenizer_json)
    for text, ids in GEMMA_3_IDS:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids) == text.replace("\u2581", " ")
    chat = "<start_of_turn>user\nhi<end_of_turn>\n"
    assert tokenizer.encode(chat).ids == [2, 105, 2364, 107, 2202, 106, 107]
