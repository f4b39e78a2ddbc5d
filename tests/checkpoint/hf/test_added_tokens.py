"""Tokens that only the files beside tokenizer.json have get the ids that transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from vinfer.checkpoint.checkpoint import Checkpoint, open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.checkpoint.tokenizer_files import read_tokenizer_files
from vinfer.errors import CheckpointError

Write = Callable[..., Path]
START, END, PAD = "<|im_start|>", "<|im_end|>", "[PAD]"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
FIRST_FREE = 258
"""The tests' tokenizer has 256 bytes, <s> and </s>."""


def entry(content: str, **flags: bool) -> dict[str, Any]:
    usual = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    return {"content": content, **usual, **flags}


def write(directory: Path, name: str, **changes: Any) -> None:
    path = directory / name
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | changes))


def decoder(directory: Path) -> None:
    tokens = {"258": entry(START), "259": entry(END), "260": entry("<b>", special=False, normalized=True)}
    write(
        directory, "tokenizer_config.json", added_tokens_decoder=tokens, eos_token=END, chat_template=CHATML
    )


def added_tokens(directory: Path) -> None:
    write(directory, "added_tokens.json", **{END: 259, START: 258, "<b>": 260})
    write(directory, "tokenizer_config.json", eos_token=END, chat_template=CHATML)
    write(directory, "special_tokens_map.json", extra_special_tokens=[START])


def special_tokens_map(directory: Path) -> None:
    write(directory, "tokenizer_config.json", eos_token=None, chat_template=CHATML)
    write(
        directory,
        "special_tokens_map.json",
        eos_token=entry(START, normalized=True),
        additional_special_tokens=[END, "<b>"],
    )


def opened(directory: Path) -> Checkpoint:
    return open_checkpoint(resolve_source(str(directory)))


def written(directory: Path, out: Path, *, vocab_size: int = 264) -> Tokenizer:
    read_tokenizer_files(directory, vocab_size=vocab_size).write(out)
    return Tokenizer.from_file(str(out / "tokenizer.json"))


def theirs(directory: Path) -> Any:
    import transformers

    write(directory, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return transformers.AutoTokenizer.from_pretrained(directory)


@pytest.mark.torch
@pytest.mark.parametrize("declare", [decoder, added_tokens, special_tokens_map])
def test_tokens_are_added_as_by_transformers(
    hf_directory: Write, tmp_path: Path, declare: Callable[[Path], None]
) -> None:
    directory = hf_directory()
    declare(directory)
    ours = written(directory, tmp_path / "out")
    text = f"{START}user\nhi <b> {END}\n{PAD}"
    assert ours.encode(text).ids == theirs(directory)(text).input_ids
    assert [ours.token_to_id(token) for token in (START, END, "<b>")] == [258, 259, 260]
    assert {id_: token.special for id_, token in ours.get_added_tokens_decoder().items()} == {
        id_: token.special for id_, token in theirs(directory).added_tokens_decoder.items()
    }


def test_the_end_token_ends(hf_directory: Write) -> None:
    directory = hf_directory(eos_token_id=None)
    decoder(directory)
    assert opened(directory).generation.eos_token_ids == (259,)


names = st.lists(st.sampled_from(["<a>", "<b>", START, END, "<c>", "[X]"]), unique=True, max_size=6)


@pytest.mark.torch
@examples(25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=names, num_present=st.integers(0, 6), flags=st.lists(st.booleans(), min_size=18, max_size=18))
def test_any_missing_tokens(
    hf_directory: Write, tmp_path: Path, names: list[str], num_present: int, flags: list[bool]
) -> None:
    """Some of the declared tokens are in tokenizer.json, with their flags; the others are not."""
    directory = hf_directory()
    entries = [
        entry(name, special=flags[3 * i], lstrip=flags[3 * i + 1], rstrip=flags[3 * i + 2])
        for i, name in enumerate(names)
    ]
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(**token) for token in entries[:num_present]])
    tokenizer.save(str(directory / "tokenizer.json"))
    declared = {str(FIRST_FREE + i): token for i, token in enumerate(entries)}
    write(directory, "tokenizer_config.json", added_tokens_decoder=declared)
    ours = written(directory, tmp_path / "out")
    text = " ".join(["x", *names, "y", *reversed(names)])
    assert ours.encode(text).ids == theirs(directory)(text).input_ids
    for i, name in enumerate(names):
        assert ours.encode(name).ids == [FIRST_FREE + i]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        # No room in the model for the end token that the files name.
        ({"tokenizer_config.json": {"eos_token": END}}, r"eos_token '<\|im_end\|>' is not a token"),
        (
            {"special_tokens_map.json": {"eos_token": END}, "tokenizer_config.json": {"eos_token": None}},
            "eos_token",
        ),
        ({"tokenizer_config.json": {"bos_token": START}}, "bos_token"),
        (
            {
                "tokenizer_config.json": {
                    "added_tokens_decoder": {"258": entry(START)},
                    "chat_template": CHATML,
                }
            },
            r"chat template writes '<\|im_start\|>' is not a token",
        ),
        (
            {"added_tokens.json": {END: 258}, "tokenizer_config.json": {"chat_template": CHATML}},
            "chat template",
        ),
    ],
)
def test_what_a_conversation_depends_on_is_refused(
    hf_directory: Write, files: dict[str, dict[str, Any]], says: str
) -> None:
    directory = hf_directory()
    for name, changes in files.items():
        write(directory, name, **changes)
    with pytest.raises(CheckpointError, match=says):
        read_tokenizer_files(directory, vocab_size=FIRST_FREE)


def test_an_end_token_without_a_name_is_refused(hf_directory: Write) -> None:
    directory = hf_directory(eos_token_id=258)
    write(directory, "tokenizer_config.json", eos_token=None)
    with pytest.raises(
        CheckpointError, match=r"eos_token_id 258 has no token in tokenizer.json, which has 258"
    ):
        opened(directory)
    write(directory, "tokenizer_config.json", eos_token="</s>")
    assert opened(directory).generation.eos_token_ids == (257, 258)


def test_a_gap_is_refused(hf_directory: Write) -> None:
    """Transformers would give the token another id than the one that the model was trained with."""
    directory = hf_directory()
    write(directory, "tokenizer_config.json", added_tokens_decoder={"260": entry(END)})
    with pytest.raises(CheckpointError, match=r"is token 260 in the files beside .* token 258"):
        read_tokenizer_files(directory, vocab_size=264)


@pytest.mark.parametrize(
    "declared",
    [7, {"x": entry(END)}, {"-1": entry(END)}, {"258": "x"}, {"258": {}}, {"258": {"content": ""}}],
)
def test_a_malformed_declaration_is_refused(hf_directory: Write, declared: Any) -> None:
    directory = hf_directory()
    write(directory, "tokenizer_config.json", added_tokens_decoder=declared)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        opened(directory)


def test_a_pad_token_that_the_model_has_no_room_for_stays_text(hf_directory: Write, tmp_path: Path) -> None:
    directory = hf_directory()
    write(directory, "tokenizer_config.json", pad_token=PAD)
    assert written(directory, tmp_path / "out", vocab_size=258).get_vocab_size() == 258
