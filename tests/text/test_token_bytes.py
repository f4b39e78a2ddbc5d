"""The bytes of tokens as logprobs show them: joined, they are the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import no_decoder, write_tokenizer

from vinfer.text.token_bytes import byte_of_token, token_bytes
from vinfer.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("kind", "begins"),
    [
        ("byte_level", b""),
        ("gemma", b""),
        ("llama", b" "),
        ("sentencepiece_legacy", b" "),
        ("metaspace_first", b" "),
    ],
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.sampled_from(["the", " cat", "  ", "\n\n", "é", "😀", "<table>", "</s>"]), min_size=1)
)
def test_bytes_joined_are_the_text(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str, begins: bytes, words: list[str]
) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    text = "".join(words)
    # Metaspace adds no space if there already is one.
    expected = (
        text.encode()
        if text.startswith(" ") and kind in ("llama", "metaspace_first")
        else begins + text.encode()
    )
    ids = tokenizer.encode_plain(text)
    assert b"".join(token_bytes(tokenizer, token_id) for token_id in ids) == expected


def test_each_token_by_itself(tokenizers_of_all_kinds: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_of_all_kinds["gemma"]
    shown = {
        token: token_bytes(tokenizer, tokenizer.token_to_id(token) or 0)
        for token in ("▁the", "▁▁▁", "\n\n", "<0xE2>", "<0x0A>", "</s>")
    }
    assert shown == {
        "▁the": b" the",
        "▁▁▁": b"   ",
        "\n\n": b"\n\n",
        "<0xE2>": b"\xe2",
        "<0x0A>": b"\n",
        "</s>": b"</s>",
    }
    assert token_bytes(tokenizer, tokenizer.vocab_size) == b""


def test_words_that_only_look_like_pieces_are_shown_as_they_read(tmp_path: Path) -> None:
    """If no decoder turns them into bytes or spaces, `<0x41>` and `▁` are text."""
    fast = no_decoder()
    fast.add_tokens(["<0x41>", "▁x"])
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, fast))
    ids = [tokenizer.token_to_id(token) or 0 for token in ("<0x41>", "▁x")]
    assert [token_bytes(tokenizer, token_id) for token_id in ids] == [b"<0x41>", "▁x".encode()]


@pytest.mark.parametrize(
    ("token", "byte"),
    [
        ("<0xE2>", 0xE2),
        ("<0x0a>", 10),
        ("<0xZZ>", None),
        ("<0x 1>", None),
        ("<0x+1>", None),
        ("<0x001>", None),
    ],
)
def test_byte_tokens_are_two_hexadecimal_digits(token: str, byte: int | None) -> None:
    assert byte_of_token(token) == byte
