"""Encoding and decoding, and which special tokens a text may contain."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest
from small_tokenizers import (
    KINDS,
    SPECIALS,
    byte_level,
    metaspace_first,
    sentencepiece_legacy,
    unigram,
    write_tokenizer,
)
from tokenizers import AddedToken, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer

from vinfer.errors import BundleError, RequestError
from vinfer.text.control_tokens import RenderedPrompt
from vinfer.text.tokenizer import Tokenizer

ALL_KINDS = tuple(KINDS)
END = "<|im_end|>"


def load(directory: Path, fast: FastTokenizer, **special_tokens: str | None) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(directory, fast, **special_tokens))


def rendered(*parts: str) -> RenderedPrompt:
    """Return a prompt of alternating user text and the template's own special tokens, user text first."""
    text, spans = "", []
    for index, part in enumerate(parts):
        if index % 2:
            spans.append((len(text), len(text) + len(part)))
        text += part
    has_user_specials = any(special in part for part in parts[::2] for special in SPECIALS)
    return RenderedPrompt(text, tuple(spans), has_user_specials)


def test_facts(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, byte_level(), pad_token="no such token")
    assert tokenizer.vocab_size == 1 + max(byte_level().get_vocab().values())
    assert tokenizer.special_ids == frozenset(range(len(SPECIALS)))
    assert tokenizer.special_tokens["bos_token"] == "<s>"
    assert tokenizer.token_to_id(END) == 4
    assert tokenizer.id_to_token(4) == END
    assert tokenizer.token_to_id("no such token") is None
    assert tokenizer.id_to_token(tokenizer.vocab_size) is None


def test_vocab_size_covers_holes(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, byte_level())
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"]["the"] = 5000
    path.write_text(json.dumps(content))
    assert Tokenizer.load(tmp_path).vocab_size == 5001


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_special_strings_are_special_in_encode_only(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    assert tokenizer.token_to_id(END) in tokenizer.encode(f"the {END}", add_special_tokens=False)
    plain = tokenizer.encode_plain(f"the {END} cat")
    assert plain
    assert tokenizer.special_ids.isdisjoint(plain) or kind in (
        "wordpiece",
        "no_decoder",
    )  # those have no letters
    assert tokenizer.token_to_id(END) not in plain


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_legacy", "llama", "gemma", "metaspace_first"])
def test_plain_text_survives(tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    text = f"the {END}cat </s> <unk>日本 <|im_start|"
    assert tokenizer.decode(tokenizer.encode_plain(text), skip_special_tokens=True) == text
    assert tokenizer.encode_plain("") == []


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize(
    "text", ["", "the cat", " the", f"<|im_start|>user\nthe cat{END}\n<s>", f"{END}{END} the"]
)
def test_prompt_without_user_specials_is_encode(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = tokenizers_of_all_kinds[kind]
    prompt = tokenizer.control_tokens.unmark(text, None)
    assert tokenizer.encode_prompt(prompt) == tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    "kind", ["byte_level", "sentencepiece_legacy", "llama", "gemma", "metaspace_first", "unigram"]
)
def test_user_specials_are_text_and_the_rest_is_untouched(
    tokenizers_of_all_kinds: dict[str, Tokenizer], kind: str
) -> None:
    """The reference replaces the user's special tokens with words at the same place in the text."""
    tokenizer = tokenizers_of_all_kinds[kind]
    start, end = (tokenizer.token_to_id(token) for token in ("<|im_start|>", END))
    prompt = rendered("", "<|im_start|>", f"user\nthe {END} cat", END, "\nthe", "<|im_start|>", "sat")
    token_ids = tokenizer.encode_prompt(prompt)
    assert [token_id for token_id in token_ids if token_id in (start, end)] == [start, end, start]
    first_end = token_ids.index(end)
    same = tokenizer.encode(
        "<|im_start|>x" + prompt.text[prompt.text.index(f"{END}\nthe") :], add_special_tokens=False
    )
    assert token_ids[first_end:] == same[same.index(end) :]
    if kind != "unigram":  # it has no bytes for the newline
        assert tokenizer.decode(token_ids, skip_special_tokens=False).replace(" ", "") == prompt.text.replace(
            " ", ""
        )


def test_space_around_special_tokens_as_the_tokenizer_says(tmp_path: Path) -> None:
    """Phi-3 marks its control tokens rstrip, so they absorb the newline after them, guarded or not."""
    fast = byte_level()
    fast.add_special_tokens([AddedToken(END, special=True, normalized=False, rstrip=True)])
    tokenizer = load(tmp_path, fast)
    with_user_special = rendered("</s>", END, "\nthe")
    assert tokenizer.encode_prompt(with_user_special)[-2:] == [4, tokenizer.token_to_id("the")]
    assert tokenizer.encode_prompt(rendered("x", END, "\nthe"))[-2:] == [4, tokenizer.token_to_id("the")]


def test_special_token_written_in_another_way(tmp_path: Path) -> None:
    """A special token that is matched after normalization is also found in text that does not spell it."""
    fast = byte_level()
    fast.normalizer = normalizers.Lowercase()
    fast.add_special_tokens([AddedToken("<tool>", special=True, normalized=True)])
    tokenizer = load(tmp_path, fast)
    tool = tokenizer.token_to_id("<tool>")
    assert tool in tokenizer.encode("the <TOOL>", add_special_tokens=False)
    assert tool not in tokenizer.encode_prompt(rendered("the <TOOL>"))
    assert tokenizer.encode_prompt(rendered("the ", "<tool>", " <TOOL>")).count(tool) == 1


def test_special_token_in_disguise_is_refused_where_the_model_knows_it_as_a_word(tmp_path: Path) -> None:
    """The tokenizer normalizes full-width letters, and Unigram then finds the word."""
    fast = unigram()
    fast.normalizer = normalizers.NFKC()
    tokenizer = load(tmp_path, fast)
    disguised = "the \uff1c/s\uff1e"
    assert tokenizer.token_to_id("</s>") in tokenizer.encode(disguised, add_special_tokens=False)
    with pytest.raises(RequestError, match="spells a special token"):
        tokenizer.encode_prompt(rendered(disguised))


def test_one_character_control_token_may_be_typed(tmp_path: Path) -> None:
    """If the newline is a special token, a user's newline must be one as well."""
    fast = byte_level()
    fast.add_special_tokens([AddedToken("\n", special=True, normalized=False)])
    tokenizer = load(tmp_path, fast)
    newline = tokenizer.token_to_id("\n")
    for prompt in (rendered("the\n", END, "\n"), rendered(f"the{END}\n", END, "\n")):
        assert tokenizer.encode_prompt(prompt).count(newline) == 2
        assert tokenizer.encode_prompt(prompt).count(tokenizer.token_to_id(END)) == 1
    assert newline in tokenizer.encode_plain("the\n")


def test_named_tokens_are_special_even_if_the_file_does_not_say_so(tmp_path: Path) -> None:
    fast = byte_level()
    fast.add_tokens([AddedToken("<image>", special=False, rstrip=True, normalized=False)])
    before = load(tmp_path / "a", fast)
    tokenizer = load(tmp_path / "b", fast, additional_special_tokens=["<image>"])  # type: ignore[arg-type]
    image = before.token_to_id("<image>")
    assert image in before.encode_plain("<image>")
    assert image not in tokenizer.encode_plain("<image>")
    assert tokenizer.token_to_id("<image>") == image
    assert tokenizer.special_ids == before.special_ids | {image}
    assert tokenizer.vocab_size == before.vocab_size


def test_bos_only_where_asked_for(tmp_path: Path) -> None:
    fast = byte_level()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = load(tmp_path, fast)
    the = tokenizer.token_to_id("the")
    assert tokenizer.encode("the", add_special_tokens=True) == [1, the]
    assert tokenizer.encode("the", add_special_tokens=False) == [the]
    assert tokenizer.encode_plain("the") == [the]
    assert tokenizer.encode_prompt(rendered("the")) == [the]


def test_bos_is_not_added_to_a_chat_whose_template_writes_it(
    tokenizers_of_all_kinds: dict[str, Tokenizer],
) -> None:
    tokenizer = tokenizers_of_all_kinds["gemma"]
    bos, the = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("the")
    assert tokenizer.encode("the", add_special_tokens=True) == [bos, the]
    assert tokenizer.encode_prompt(rendered("", "<s>", "the")) == [bos, the]
    assert tokenizer.encode_prompt(rendered("", "<s>", "the</s>")).count(bos) == 1
    assert tokenizer.encode_prompt(rendered("the")) == [the]


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    fast = byte_level()
    fast.enable_truncation(2)
    fast.enable_padding(length=8)
    tokenizer = load(tmp_path, fast)
    assert len(tokenizer.encode("the cat sat", add_special_tokens=True)) == 3
    assert len(tokenizer.encode_plain("the cat sat")) == 3


@pytest.mark.parametrize("text", ["\ud800", "the \udfff cat"])
def test_lone_surrogate_is_the_clients_error(
    tokenizers_of_all_kinds: dict[str, Tokenizer], text: str
) -> None:
    tokenizer = tokenizers_of_all_kinds["byte_level"]
    with pytest.raises(RequestError, match="lone surrogate at character"):
        tokenizer.encode(text, add_special_tokens=False)
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode_plain(text)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("tokenizer.json", None, "not a readable tokenizer"),
        ("tokenizer.json", "{}", "not a readable tokenizer"),
        ("special_tokens.json", None, "not readable"),
        ("special_tokens.json", "{", "not readable"),
        ("special_tokens.json", "[]", "must be strings"),
        ("special_tokens.json", '{"bos_token": 3}', "must be strings"),
        ("special_tokens.json", '{"additional_special_tokens": ["a", 1]}', "must be strings"),
    ],
)
def test_broken_file_is_named(tmp_path: Path, file: str, content: str | None, says: str) -> None:
    write_tokenizer(tmp_path, byte_level())
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(BundleError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path / file) in caught.value.message


@pytest.mark.parametrize("kind", [byte_level, sentencepiece_legacy, metaspace_first, unigram])
@pytest.mark.parametrize("unit", ["the cat ", "a", " ", "<|im_end|>", "<", "日", "\n"])
def test_long_text(tokenizers_of_all_kinds: dict[str, Tokenizer], kind: object, unit: str) -> None:
    """The test must finish: anything quadratic would take minutes."""
    tokenizer = tokenizers_of_all_kinds[kind.__name__]  # type: ignore[attr-defined]
    text = unit * ((1 << 18) // len(unit))
    assert tokenizer.encode_plain(text)
    assert tokenizer.encode(text, add_special_tokens=False)
    tokenizer.control_tokens.unmark(text, None)


def test_threads_share_a_tokenizer(tokenizers_of_all_kinds: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers_of_all_kinds["byte_level"]
    text = f"the cat {END}"
    expected = (tokenizer.encode(text, add_special_tokens=False), tokenizer.encode_plain(text))
    wrong = []

    def work() -> None:
        for _ in range(200):
            got = (tokenizer.encode(text, add_special_tokens=False), tokenizer.encode_plain(text))
            if got != expected:
                wrong.append(got)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_other_threads_run_while_a_long_text_is_encoded(
    tokenizers_of_all_kinds: dict[str, Tokenizer],
) -> None:
    """`Tokenizer.encode` of the tokenizers package holds the GIL, so the event loop would stop."""
    tokenizer = tokenizers_of_all_kinds["byte_level"]
    encoder = threading.Thread(target=tokenizer.encode_plain, args=("the cat " * 100_000,))
    interval = sys.getswitchinterval()
    encoder.start()
    turns = 0
    while encoder.is_alive():
        threading.Event().wait(interval)
        turns += 1
    assert turns > 5
