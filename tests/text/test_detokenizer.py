"""Streamed text compared with decoding everything at once, for every kind of decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level, write_tokenizer
from tokenizers import AddedToken

from vinfer.text.detokenizer import Detokenizer
from vinfer.text.tokenizer import Tokenizer

STRIPS_FIRST_SPACE = ("sentencepiece_legacy", "llama", "metaspace_first")
BYTE_FALLBACK = (*STRIPS_FIRST_SPACE, "gemma")
BYTE_PIECES = [b"\xe2", b"\x82", b"\xf0\x9f", b"\xac", b"\xff", b"a", "€".encode(), "😀".encode()]
ALL_KINDS = ("byte_level", *BYTE_FALLBACK, "wordpiece", "unigram", "no_decoder")
shared_tokenizers = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def stream(
    tokenizer: Tokenizer, cuts: Sequence[Sequence[int]], *, skip_special_tokens: bool = True, prompt_tail=()
) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, prompt_tail=prompt_tail)
    return [*map(detokenizer.push, cuts), detokenizer.flush()]


def byte_ids(tokenizer: Tokenizer, content: bytes) -> list[int]:
    """Return one token per byte."""
    if "ByteFallback" in tokenizer.decoder_types:
        ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in content]
    else:
        ids = [token_id for byte in content for token_id in tokenizer.encode_plain(chr(byte))[:1]]
    assert None not in ids
    return ids  # type: ignore[return-value]


def random_cuts(data: st.DataObject, vocab_size: int) -> list[list[int]]:
    # Also a few ids beyond the vocabulary.
    return data.draw(st.lists(st.lists(st.integers(0, vocab_size + 1), max_size=5), max_size=12))


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("skip_special_tokens", [True, False])
@shared_tokenizers
@given(data=st.data())
def test_pieces_joined_are_decode(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str, skip_special_tokens: bool, data: st.DataObject
) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    cuts = random_cuts(data, tokenizer.vocab_size)
    ids = [token_id for cut in cuts for token_id in cut]
    expected = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
    shown = "".join(stream(tokenizer, cuts, skip_special_tokens=skip_special_tokens))
    if kind in BYTE_FALLBACK and "\ufffd" in expected:
        # decode() replaces whole runs of byte tokens; see the test of invalid bytes below.
        return
    assert shown == expected


@pytest.mark.parametrize("kind", BYTE_FALLBACK)
@shared_tokenizers
@given(data=st.data())
def test_byte_fallback_with_invalid_runs(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    """Runs of bytes are decoded as UTF-8 with replacement; everything between them is decoded as usual."""
    tokenizer = tokenizers_of_all_kinds[kind]
    runs = data.draw(st.lists(st.lists(st.sampled_from(BYTE_PIECES), min_size=1).map(b"".join), max_size=4))
    word = [tokenizer.token_to_id("▁the")]
    first = " the" if kind == "gemma" else "the"
    ids, expected = (list(word), first) if data.draw(st.booleans()) or not runs else ([], "")
    for run in runs:
        ids += byte_ids(tokenizer, run) + word
        expected += run.decode("utf-8", "replace") + " the"
    size = data.draw(st.integers(1, 5))
    cuts = [ids[start : start + size] for start in range(0, len(ids), size)]
    assert "".join(stream(tokenizer, cuts)) == expected


@pytest.mark.parametrize("kind", ["byte_level", *BYTE_FALLBACK])
def test_never_half_a_character(tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    cuts = [[token_id] for token_id in tokenizer.encode_plain("é€😀")]
    assert len(cuts) >= 9
    assert [piece for piece in stream(tokenizer, cuts) if piece.strip()] == ["é", "€", "😀"]


def test_byte_tokens_of_an_unfinished_character_are_held_until_flush(
    tokenizers_of_all_kinds: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers_of_all_kinds["metaspace_first"]
    euro = byte_ids(tokenizer, "€".encode())
    assert stream(tokenizer, [[token_id] for token_id in euro[:2]]) == ["", "", "\ufffd"]


@pytest.mark.parametrize("kind", ["byte_level", *BYTE_FALLBACK])
def test_invalid_bytes_do_not_stall(tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str) -> None:
    """DecodeStream would hold all of this back until the end and then raise."""
    tokenizer = tokenizers_of_all_kinds[kind]
    last_byte = tokenizer.encode_plain("é")[-1:]  # a continuation byte alone
    assert stream(tokenizer, [last_byte] * 5) == ["\ufffd"] * 5 + [""]


@pytest.mark.parametrize("kind", BYTE_FALLBACK)
def test_valid_characters_stay_when_invalid_bytes_follow(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    ids = byte_ids(tokenizer, b"\xe2\x82\xac\xff")
    assert stream(tokenizer, [[token_id] for token_id in ids])[2:] == ["€", "\ufffd", ""]
    assert tokenizer.decode(ids, skip_special_tokens=True).count("\ufffd") == 4


@pytest.mark.parametrize("kind", STRIPS_FIRST_SPACE)
def test_leading_space_belongs_to_the_text_only_after_a_prompt(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    the_cat = [tokenizer.token_to_id("▁the"), tokenizer.token_to_id("▁cat")]
    end = tokenizer.token_to_id("</s>")
    assert stream(tokenizer, [the_cat]) == ["the cat", ""]
    # A skipped token between two words does not make the second word the first.
    assert stream(tokenizer, [the_cat[:1], [end], the_cat[1:]]) == ["the", "", " cat", ""]
    assert stream(tokenizer, [[end], the_cat]) == ["", "the cat", ""]
    assert stream(tokenizer, [the_cat], prompt_tail=[end, *the_cat]) == [" the cat", ""]


def test_gemma_keeps_a_leading_space(tokenizers_of_all_kinds: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_of_all_kinds["gemma"]
    the_cat = [tokenizer.token_to_id("▁the"), tokenizer.token_to_id("▁cat")]
    assert stream(tokenizer, [the_cat]) == [" the cat", ""]
    assert stream(tokenizer, [the_cat], prompt_tail=the_cat) == [" the cat", ""]


def test_runs_of_spaces_and_newlines_are_shown_as_they_come(
    tokenizers_of_all_kinds: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers_of_all_kinds["gemma"]
    cuts = [[token_id] for token_id in tokenizer.encode_plain("<table>\n\n\n   the  cat")]
    assert stream(tokenizer, cuts) == ["<table>", "\n\n", "\n", "   ", "the", "  ", "cat", ""]


@pytest.mark.parametrize("kind", ["byte_level", *BYTE_FALLBACK])
@shared_tokenizers
@given(data=st.data())
def test_an_answer_goes_on_where_the_prompt_ended(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str, data: st.DataObject
) -> None:
    """Split anywhere between two characters, prompt and answer form one text, never with half a character."""
    tokenizer = tokenizers_of_all_kinds[kind]
    words = st.sampled_from(["the", " cat", " ", "   ", "\n", "\n\n", "é", "€", "😀", "日本", "<table>", "x"])
    text = "".join(data.draw(st.lists(words, min_size=1, max_size=12)))
    ids = tokenizer.encode_plain(text)
    ends = [
        end
        for end in range(len(ids) + 1)
        if "\ufffd" not in tokenizer.decode(ids[:end], skip_special_tokens=True)
    ]
    begin = data.draw(st.sampled_from(ends))
    prompt_text = tokenizer.decode(ids[:begin], skip_special_tokens=True)
    pieces = stream(tokenizer, [[token_id] for token_id in ids[begin:]], prompt_tail=ids[:begin])
    assert prompt_text + "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", ["byte_level", *BYTE_FALLBACK])
def test_prompt_that_ends_inside_a_character(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str
) -> None:
    """The prompt's text is never shown; a character that the answer completes is shown whole."""
    tokenizer = tokenizers_of_all_kinds[kind]
    smile = tokenizer.encode_plain("the😀")
    word = tokenizer.encode_plain("the")[-1:]
    assert stream(tokenizer, [smile[-2:]], prompt_tail=smile[:-2]) == ["😀", ""]
    assert "".join(stream(tokenizer, [word], prompt_tail=smile[:-2])).strip() == "the"
    assert stream(tokenizer, [], prompt_tail=smile[:-2]) == [""]


def test_added_token_is_shown_as_it_reads(tmp_path: Path) -> None:
    """It has characters (a space, full-width bars) that byte-level BPE does not use to spell bytes."""
    fast = byte_level()
    fast.add_tokens([AddedToken("<｜User 1｜>", normalized=False)])
    tokenizer = Tokenizer.load(write_tokenizer(tmp_path, fast))
    ids = tokenizer.encode_plain("é<｜User 1｜>é")
    assert "".join(stream(tokenizer, [[token_id] for token_id in ids])) == "é<｜User 1｜>é"


def test_bytes_by_a_decoder_of_several_steps(tokenizers_of_all_kinds: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_of_all_kinds["byte_level_and_more"]
    text = "the cat sat é€😀 日本"
    ids = tokenizer.encode_plain(text)
    shown = stream(tokenizer, [[token_id] for token_id in ids])
    assert "".join(shown) == text.replace("sat", "SAT")
    assert "😀" in shown
    # Invalid bytes are shown within a limit, and the text after them.
    invalid = tokenizer.encode_plain("é")[-1:] * 20
    assert "".join(stream(tokenizer, [[token_id] for token_id in invalid])[:-1]).count("\ufffd") >= 8
    # The prompt is not shown, though it ends inside a character.
    smile = tokenizer.encode_plain("the😀")
    assert stream(tokenizer, [tokenizer.encode_plain("the")], prompt_tail=smile[:-2]) == ["the", ""]


def test_cost_per_token_does_not_grow(
    tokenizers_of_all_kinds: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizers_of_all_kinds["sentencepiece_legacy"]
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **options: (decoded.append(len(ids)), decode(ids, **options))[1]
    )
    ids = tokenizer.encode_plain("the cat sat on 日本 €" * 50)
    stream(tokenizer, [[token_id] for token_id in ids])
    assert max(decoded) <= 8
    assert sum(decoded) <= 8 * len(ids)
