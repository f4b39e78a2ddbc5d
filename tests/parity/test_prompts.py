"""The built-in prompts reach every limit of a bundle's programs; prompt files are read or clearly refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vinfer.bundle.manifest import Manifest, ProgramSpec
from vinfer.bundle.programs import ProgramShape, plan_programs
from vinfer.errors import ConfigError, RequestError
from vinfer.parity.prompts import MAX_PROMPT_LEN, Prompt, answer_len, built_in_prompts, read_prompts


def manifest(max_model_len: int, prefill_lengths: tuple[int, ...], page_size: int = 32) -> Manifest:
    shapes: tuple[ProgramShape, ...] = plan_programs(
        prefill_shapes=[(1, length) for length in prefill_lengths],
        slot_buckets=[1, 4],
        steps=4,
    )
    programs = tuple(ProgramSpec(shape=shape, file="", inputs=(), outputs=()) for shape in shapes)
    return Manifest.model_construct(max_model_len=max_model_len, page_size=page_size, programs=programs)


def encode(text: str) -> list[int]:
    return list(text.encode())


def prompts_of(max_model_len: int, prefill_lengths: tuple[int, ...], page_size: int = 32) -> list[Prompt]:
    built = manifest(max_model_len, prefill_lengths, page_size)
    return built_in_prompts(built, encode, max_model_len=max_model_len, num_token_ids=300)


def lengths(prompts: list[Prompt]) -> list[int]:
    return [len(prompt.token_ids) for prompt in prompts if "random" in prompt.name]


def test_prompts_cross_chunks_and_pages_and_reach_the_last_position() -> None:
    prompts = prompts_of(1024, (64, 80))
    # Answers of 64 tokens end pages 2, 4 and 16 in their middle; 960 + 64 end at the last position.
    assert lengths(prompts) == [1, 31, 65, 81, 95, 479, 960]
    [text] = [prompt for prompt in prompts if "text" in prompt.name]
    assert bytes(text.token_ids).decode().startswith("The harbour master")


def test_prompts_of_a_short_and_of_a_long_context() -> None:
    short = prompts_of(8, (8,))
    assert [(len(p.token_ids), answer_len(8, len(p.token_ids))) for p in short] == [(1, 4), (4, 4), (4, 4)]
    long = prompts_of(131072, (512,), page_size=128)
    assert lengths(long) == [1, 95, 223, 479, 513, 2015, MAX_PROMPT_LEN]


def test_prompts_fit_an_engine_that_holds_less_than_its_bundle() -> None:
    cramped = built_in_prompts(manifest(1024, (64,)), encode, max_model_len=256, num_token_ids=300)
    assert lengths(cramped) == [1, 31, 65, 95, 192]


def test_one_token_of_room() -> None:
    assert answer_len(512, 511) == 1
    assert answer_len(2, 1) == 1


def test_prompts_are_the_same_every_time() -> None:
    one, other = (prompts_of(512, (64,)) for _ in range(2))
    assert one == other
    assert all(0 <= token < 300 for prompt in one for token in prompt.token_ids)
    assert len({prompt.token_ids[0] for prompt in one}) > 1


def test_a_file_holds_texts_and_ids(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"ab"\n\n[3, 1, 4]\n')
    assert read_prompts(file, encode, max_model_len=8, num_token_ids=300) == [
        Prompt("prompts.jsonl:1", (97, 98)),
        Prompt("prompts.jsonl:3", (3, 1, 4)),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: write one JSON"),
        ("what?", "prompts.jsonl:1 is not JSON"),
        ('"a"\n{}', "prompts.jsonl:2 must be a nonempty JSON string or list"),
        ("[true]", "must be a nonempty JSON string or list"),
        ("[]", "must be a nonempty JSON string or list"),
        ('""', "must be a nonempty JSON string or list"),
        ("[1, 300]", "outside 0 to 299"),
        ("[-1]", "outside 0 to 299"),
        (json.dumps([1] * 8), "has 8 tokens; max_model_len is 8: shorten it"),
    ],
)
def test_a_file_that_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(file, encode, max_model_len=8, num_token_ids=300)


def test_only_one_kind_of_line_end_ends_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('"a\u2028b"\r\n"c\x85"\n', encoding="utf-8", newline="")
    assert [
        prompt.token_ids for prompt in read_prompts(file, encode, max_model_len=9, num_token_ids=300)
    ] == [
        (97, 0xE2, 0x80, 0xA8, 98),
        (99, 0xC2, 0x85),
    ]


def test_a_text_that_is_none_is_refused_with_its_line(tmp_path: Path) -> None:
    def refuse(text: str) -> list[int]:
        raise RequestError("text has a lone surrogate")

    file = tmp_path / "prompts.jsonl"
    file.write_text('"\\ud800"\n')
    with pytest.raises(ConfigError, match=r"prompts\.jsonl:1: text has a lone surrogate"):
        read_prompts(file, refuse, max_model_len=8, num_token_ids=300)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_prompts(tmp_path / "prompts", encode, max_model_len=8, num_token_ids=300)
