"""The text of one request: what is shown, what is held back, what counts as usage."""

from __future__ import annotations

import pytest

from vinfer.text.text_stream import TextDelta, TextStream
from vinfer.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tokenizers_of_all_kinds: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers_of_all_kinds["byte_level"]


def ids(tokenizer: Tokenizer, *tokens: str) -> list[int]:
    found = [tokenizer.token_to_id(token) for token in tokens]
    assert None not in found
    return found  # type: ignore[return-value]


def test_text_without_stop_strings(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert stream.push(ids(tokenizer, "the", "Ġcat")) == TextDelta("the cat", 2)
    last = stream.push(ids(tokenizer, "Ġsat", "<|im_end|>"), ends_with_stop_token=True, is_last=True)
    assert last == TextDelta(" sat", 2)


def test_stop_token_counts_and_is_not_shown(tokenizer: Tokenizer) -> None:
    """This also holds if it is an ordinary word (stop_token_ids) and special tokens are shown."""
    stream = TextStream(tokenizer, skip_special_tokens=False)
    last = stream.push(ids(tokenizer, "the", "</s>", "Ġcat"), ends_with_stop_token=True, is_last=True)
    assert last == TextDelta("the</s>", 3)


def test_tokens_after_a_stop_string_do_not_count(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, stop=["cat s"])
    assert stream.push(ids(tokenizer, "the", "Ġcat")) == TextDelta("the ", 2)
    delta = stream.push(ids(tokenizer, "Ġsat", "!", "!", "!"))
    assert delta == TextDelta("", 1, "cat s")
    assert delta.stopped


@pytest.mark.parametrize("ends_with_stop_token", [True, False])
def test_held_text_comes_out_at_the_end(tokenizer: Tokenizer, ends_with_stop_token: bool) -> None:
    stream = TextStream(tokenizer, stop=["cat sat"])
    assert stream.push(ids(tokenizer, "the", "Ġcat")).text == "the "
    tail = ids(tokenizer, "</s>") if ends_with_stop_token else []
    last = stream.push(tail, ends_with_stop_token=ends_with_stop_token, is_last=True)
    assert last == TextDelta("cat", len(tail))


def test_stop_string_in_flushed_text(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode_plain("é")[:1]
    delta = TextStream(tokenizer, stop=["\ufffd"]).push(half, is_last=True)
    assert delta == TextDelta("", 1, "\ufffd")


def test_stop_token_inside_a_stop_string_match(tokenizer: Tokenizer) -> None:
    """The stop string is complete before the stop token: the tokens after it are not counted."""
    stream = TextStream(tokenizer, stop=["the"])
    delta = stream.push(ids(tokenizer, "the", "!", "</s>"), ends_with_stop_token=True, is_last=True)
    assert delta == TextDelta("", 1, "the")


@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [
        (" cat", "the", 2),
        ("\n", "the cat", 3),  # the token is two newlines
        ("\n\n€", "the cat", 6),  # three byte tokens
        ("€ ", "the cat\n\n", 7),
    ],
)
def test_stop_strings_over_sentencepiece_tokens(
    tokenizers_of_all_kinds: dict[str, Tokenizer], stop: str, text: str, num_tokens: int
) -> None:
    tokenizer = tokenizers_of_all_kinds["gemma"]
    answer = tokenizer.encode_plain("the cat\n\n€ sat")
    delta = TextStream(tokenizer, stop=[stop]).push(answer)
    assert delta == TextDelta(text, num_tokens, stop)
