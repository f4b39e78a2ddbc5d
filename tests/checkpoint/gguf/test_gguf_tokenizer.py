"""Tokenizers built from GGUF metadata: the real one, and the behavior of each splitting rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from vinfer.checkpoint.checkpoint import Checkpoint
from vinfer.checkpoint.gguf.tokenizer import build_tokenizer_files
from vinfer.errors import CheckpointError

ALPHABET = sorted(ByteLevel.alphabet())
# All merges are possible, so only the splitting rule separates these.
WORDS = ["12", "123", "1234", "Ġ12", "'s", "Ìģ", "Ã©"]
MERGES = ["1 2", "12 3", "123 4", "Ġ 12", "' s", "Ì ģ", "Ã ©"]


def _metadata(pre: str, /, **changes: Any) -> dict[str, object]:
    tokens = [*ALPHABET, *WORDS, "<bos>", "<end>", "<user>"]
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (len(tokens) - 3) + [3, 3, 4], np.int32),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": tokens.index("<bos>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<end>"),
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not ...}


def _tokenizer(pre: str, **changes: Any) -> Tokenizer:
    return Tokenizer.from_str(build_tokenizer_files(_metadata(pre, **changes), "x.gguf").tokenizer_json)


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    smollm2.write_tokenizer(directory)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def test_the_chat_prompt_of_smollm2_has_37_tokens(smollm2_tokenizer: Tokenizer) -> None:
    prompt = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = smollm2_tokenizer.encode(prompt).ids
    assert len(ids) == 37
    assert ids[:3] == [1, 9690, 198]
    assert smollm2_tokenizer.decode(ids, skip_special_tokens=False) == prompt


def test_a_template_for_tools_is_found() -> None:
    changes = {"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t"}
    files = build_tokenizer_files({**_metadata("gpt-2"), **changes}, "x.gguf")
    assert (files.templates.default, files.templates.tool_use) == ("d", "t")


def test_smollm2_files_are_complete(smollm2: Checkpoint, tmp_path: Path) -> None:
    smollm2.write_tokenizer(tmp_path)
    assert json.loads((tmp_path / "special_tokens.json").read_text()) == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "additional_special_tokens": [],
    }
    assert "add_generation_prompt" in (tmp_path / "chat_template.jinja").read_text()
    assert smollm2.generation.eos_token_ids == (2,)


# The vocabulary of SmolLM2 lacks 21 of the 256 bytes: control characters and unused planes.
_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co"), max_codepoint=0x3FFFF)
    | st.sampled_from("\n\t 0123456789")
)


@given(_TEXT)
def test_smollm2_round_trips_text(smollm2_tokenizer: Tokenizer, text: str) -> None:
    ids = smollm2_tokenizer.encode(text, add_special_tokens=False).ids
    assert smollm2_tokenizer.decode(ids, skip_special_tokens=False) == text


@given(st.text(st.sampled_from("0123456789"), min_size=1, max_size=8))
def test_smollm2_takes_digits_one_by_one(smollm2_tokenizer: Tokenizer, digits: str) -> None:
    assert len(smollm2_tokenizer.encode(digits, add_special_tokens=False).ids) == len(digits)


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "1234", ["1234"]),
        ("smollm", "1234", ["1", "2", "3", "4"]),
        ("qwen2", "1234", ["1", "2", "3", "4"]),
        ("llama-bpe", "1234", ["123", "4"]),
        ("gpt-2", " 12", ["Ġ12"]),
        ("smollm", " 12", ["Ġ", "1", "2"]),
        ("qwen2", " 12", ["Ġ", "1", "2"]),
        ("llama-bpe", " 12", ["Ġ", "12"]),
        ("gpt-2", "x'S", ["x", "'", "S"]),
        ("llama-bpe", "x's", ["x", "'s"]),
        ("gpt-2", "e\u0301", ["e", "Ìģ"]),
        ("qwen2", "e\u0301", ["Ã©"]),
        ("llama-bpe", "\u00e9", ["Ã©"]),
    ],
)
def test_each_rule_splits_as_its_family_does(pre: str, text: str, expected: list[str]) -> None:
    assert _tokenizer(pre).encode(text, add_special_tokens=False).tokens == expected


@pytest.mark.parametrize(
    ("pre", "add_bos", "expected"),
    [
        ("llama-bpe", ..., ["<bos>", "x"]),
        ("llama-bpe", False, ["x"]),
        ("qwen2", ..., ["x"]),
        ("gpt-2", True, ["<bos>", "x"]),
    ],
)
def test_bos_is_added_where_the_family_does(pre: str, add_bos: object, expected: list[str]) -> None:
    assert _tokenizer(pre, add_bos_token=add_bos).encode("x").tokens == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"add_eos_token": True}, ["x", "<end>"]),
        ({"add_eos_token": True, "add_bos_token": True}, ["<bos>", "x", "<end>"]),
        ({"add_bos_token": True, "bos_token_id": ...}, ["x"]),
    ],
)
def test_the_file_says_what_stands_around_a_text(flags: dict[str, Any], expected: list[str]) -> None:
    assert _tokenizer("gpt-2", **flags).encode("x").tokens == expected


def test_control_tokens_are_special_and_user_tokens_are_not() -> None:
    tokenizer = _tokenizer("qwen2")
    ids = tokenizer.encode("a<end>b<user>c", add_special_tokens=False).ids
    assert len(ids) == 5
    assert tokenizer.decode(ids) == "ab<user>c"


def test_only_llama_3_takes_whole_words_without_merges() -> None:
    """Llama 3 vocabularies contain words that no merge produces."""
    changes = {"merges": ["1 2"]}
    assert _tokenizer("llama-bpe", **changes).encode("123", add_special_tokens=False).tokens == ["123"]
    assert _tokenizer("gpt-2", **changes).encode("123", add_special_tokens=False).tokens == ["12", "3"]


@pytest.mark.parametrize(
    ("pre", "changes", "message"),
    [
        (
            "default",
            {},
            "tokenizer.ggml.pre = 'default'; supported: gpt-2, smollm, llama-bpe, qwen2",
        ),
        ("tekken", {}, "'tekken'"),
        ("gpt-2", {"pre": ...}, "'default'"),
        ("gpt-2", {"model": "bert"}, "tokenizer.ggml.model = 'bert': only gpt2"),
        ("gpt-2", {"model": ...}, "no tokenizer.ggml.model"),
        ("gpt-2", {"tokens": ...}, "no list of strings tokenizer.ggml.tokens"),
        ("gpt-2", {"merges": ...}, "tokenizer.ggml.merges"),
        ("gpt-2", {"merges": ["1 2 3"]}, "do not match"),
        ("gpt-2", {"merges": ["zz 2"]}, "do not match"),
        ("gpt-2", {"tokens": [*ALPHABET, *WORDS, "1", "2", "3"]}, "3 tokens twice"),
        ("gpt-2", {"token_type": np.array([1])}, "one integer for each"),
        ("gpt-2", {"token_type": ...}, "one integer for each"),
        (
            "gpt-2",
            {"bos_token_id": ALPHABET.index(":"), "add_bos_token": True},
            "':' cannot be added around a text",
        ),
        ("gpt-2", {"eos_token_id": 10**6}, "eos_token_id = 1000000"),
    ],
)
def test_what_cannot_be_built_is_refused(pre: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build_tokenizer_files(_metadata(pre, **changes), "x.gguf")
