"""Which programs a configuration needs."""

from __future__ import annotations

from typing import Any

from vinfer.bundle.programs import plan_programs

KINDS: dict[str, Any] = {"slot_buckets": [1], "steps": 8}


def test_programs_are_listed_with_every_length_for_one_prompt() -> None:
    shapes = plan_programs(prefill_shapes=[(4, 256), (1, 64), (1, 1024)], slot_buckets=[4, 1], steps=8)
    assert [shape.name for shape in shapes] == [
        "set_slot",
        "copy_page",
        "prefill[1,64]",
        "prefill[1,256]",
        "prefill[1,1024]",
        "prefill[4,256]",
        "decode[1,8]",
        "decode[4,8]",
    ]


def test_prompts_are_scored_by_the_shortest_and_the_longest_length_and_one_prompt_at_a_time() -> None:
    plain = plan_programs(prefill_shapes=[(4, 256), (1, 64), (1, 1024)], **KINDS)
    shapes = plan_programs(prefill_shapes=[(4, 256), (1, 64), (1, 1024)], prompt_logprobs=True, **KINDS)
    assert [shape.name for shape in shapes if shape not in plain] == ["score[1,64]", "score[1,1024]"]
    one_length = plan_programs(prefill_shapes=[(2, 64)], prompt_logprobs=True, **KINDS)
    assert [shape.name for shape in one_length if shape.kind == "score"] == ["score[1,64]"]


def test_prompts_are_embedded_by_the_shortest_and_the_longest_length_alone_and_in_the_largest_batch() -> None:
    def embeds(*prefill_shapes: tuple[int, int]) -> list[str]:
        shapes = plan_programs(prefill_shapes=prefill_shapes, embeddings=True, **KINDS)
        return [shape.name for shape in shapes if shape.kind == "embed"]

    alone = ["embed[1,64]", "embed[1,1024]"]
    assert embeds((1, 64), (1, 256), (1, 1024)) == alone
    assert embeds((1, 64), (2, 64), (4, 64), (1, 1024)) == [*alone, "embed[4,64]"]
    # A batch only holds chunks that would have its length on their own.
    assert embeds((1, 64), (4, 256), (1, 1024)) == alone
