"""The least number of tokens of a text never exceeds the real one, whatever the tokenizer drops or joins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tokenizers import SPECIALS, WORDS, byte_level
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from vinfer.text.token_lengths import max_bytes_per_token, num_dense_bytes
from vinfer.text.tokenizer import Tokenizer

PIECES = (
    *(*SPECIALS, *WORDS),
    *(" ", "   ", "\n", "\t", "\u3000", "ﷺ", "𝐀", "각", "a\u0301\u0327", "\u212a", "☃" * 20),
)
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=30).map("".join)


@given(text=TEXTS)
def test_no_text_has_fewer_tokens(tokenizers_of_all_kinds: dict[str, Tokenizer], text: str) -> None:
    for name, tokenizer in tokenizers_of_all_kinds.items():
        least = tokenizer.least_tokens(text)
        assert least <= len(tokenizer.encode(text, add_special_tokens=False)), name
        assert least <= len(tokenizer.encode_plain(text)), name


def test_byte_fallback_and_the_byte_level_have_a_limit(tokenizers_of_all_kinds: dict[str, Tokenizer]) -> None:
    limits = {name: tokenizer.max_bytes_per_token for name, tokenizer in tokenizers_of_all_kinds.items()}
    assert limits["byte_level"] == len("<|im_start|>")
    assert any(limit is None for limit in limits.values())
    tokenizer = tokenizers_of_all_kinds["byte_level"]
    assert tokenizer.least_tokens("x" * 1201) == 101
    assert tokenizer.least_tokens(" \n\t" * 1000) == 0


@given(text=TEXTS)
@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFC(),
        normalizers.NFKC(),
        normalizers.Lowercase(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        normalizers.Sequence([normalizers.NFD(), normalizers.NFC()]),
    ],
    ids=["NFC", "NFKC", "Lowercase", "NFKC and Lowercase", "NFD and NFC"],
)
def test_a_normalizer_may_shorten_text(normalizer: normalizers.Normalizer, text: str) -> None:
    fast = byte_level()
    fast.normalizer = normalizer
    limit = max_bytes_per_token(fast)
    assert limit is not None
    assert -(-num_dense_bytes(text) // limit) <= len(fast.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(
    "normalizer",
    [normalizers.StripAccents(), normalizers.Replace("x", ""), normalizers.BertNormalizer()],
    ids=str,
)
def test_a_normalizer_that_drops_text_leaves_no_limit(normalizer: normalizers.Normalizer) -> None:
    fast = byte_level()
    fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizer])
    assert max_bytes_per_token(fast) is None


@pytest.mark.parametrize("behavior", ["removed", "isolated"])
def test_a_pre_tokenizer_that_drops_text_leaves_no_limit(behavior: str) -> None:
    fast = byte_level()
    split = pre_tokenizers.Split("x", behavior)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    assert (max_bytes_per_token(fast) is None) == (behavior == "removed")


def test_an_incomplete_alphabet_leaves_no_limit() -> None:
    """BPE without an unknown token drops what it has no token for."""
    fast = FastTokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert fast.encode("zzzz").ids == []
    assert max_bytes_per_token(fast) is None


def test_white_space_beside_a_token_that_swallows_it_does_not_count() -> None:
    fast = byte_level()
    fast.add_tokens([AddedToken("<sep>", lstrip=True, rstrip=True)])
    text = " " * 5000 + "<sep>" + "\n" * 5000
    assert len(fast.encode(text).ids) == 1
    assert num_dense_bytes(text) == 5
    assert num_dense_bytes("".join(chr(i) for i in range(0x30000) if chr(i).isspace())) == 0
