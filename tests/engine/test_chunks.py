"""How prompts are split, checked by hand and against every other way to split them."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinfer.engine.chunks import ChunkPlan, keep_whole


def cut(plan: ChunkPlan, num_tokens: int) -> list[int]:
    chunks = []
    while num_tokens:
        chunks.append(plan.next_length(num_tokens))
        assert 1 <= chunks[-1] <= num_tokens
        num_tokens -= chunks[-1]
    return chunks


def padded(lengths: tuple[int, ...], num_tokens: int) -> int:
    return min(length for length in lengths if length >= num_tokens)


@pytest.mark.parametrize(
    ("num_tokens", "dispatch_cost_tokens", "expected"),
    [
        (67, 16, [64, 3]),  # 64+16 padded and 2 dispatches (112), compared with 256+16
        (67, 1000, [67]),
        (67, None, [67]),
        (256, None, [256]),
        (257, None, [256, 1]),
        (200, 16, [200]),  # 3 * (64+16) + 16+16 equals 256+16, so fewer dispatches win
        (17, 16, [16, 1]),  # 64 compared with 80
        (33, 16, [33]),  # 3 * (16+16) = 96 compared with 64+16
        (16, 0, [16]),
    ],
)
def test_a_prompt_is_cut_by_the_cost_of_a_dispatch(
    num_tokens: int, dispatch_cost_tokens: int | None, expected: list[int]
) -> None:
    chunks = cut(ChunkPlan((16, 64, 256), dispatch_cost_tokens), num_tokens)
    assert chunks == expected


@given(
    lengths=st.sets(st.integers(1, 40), min_size=1, max_size=4).map(lambda found: tuple(sorted(found))),
    dispatch_cost_tokens=st.integers(0, 50),
    data=st.data(),
)
def test_no_other_way_of_cutting_is_cheaper(
    lengths: tuple[int, ...], dispatch_cost_tokens: int, data: st.DataObject
) -> None:
    num_tokens = data.draw(st.integers(1, lengths[-1]), label="num_tokens")

    @functools.cache
    def least(left: int) -> int:
        if left <= 0:
            return 0
        return min(dispatch_cost_tokens + length + least(left - length) for length in lengths)

    chunks = cut(ChunkPlan(lengths, dispatch_cost_tokens), num_tokens)
    assert sum(dispatch_cost_tokens + padded(lengths, chunk) for chunk in chunks) == least(num_tokens)
    assert all(chunk in lengths for chunk in chunks[:-1])


@given(lengths=st.sets(st.integers(1, 40), min_size=1, max_size=4), num_tokens=st.integers(1, 200))
def test_without_a_cost_only_what_exceeds_the_largest_bucket_is_cut(
    lengths: set[int], num_tokens: int
) -> None:
    longest = max(lengths)
    expected = [longest] * (num_tokens // longest) + ([num_tokens % longest] if num_tokens % longest else [])
    assert cut(ChunkPlan(lengths, None), num_tokens) == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 8, 8),  # ends with the first block
        (0, 7, 3),  # ends before the block that it would split
        (3, 6, 8),  # begins with the block, so takes it whole
        (4, 9, 9),  # begins inside the block: the last token of a prompt that was copied
        (8, 16, 12),
        (12, 20, 20),  # two adjacent blocks are split between them
        (12, 22, 20),
        (20, 23, 24),
        (20, 24, 24),
        (24, 30, 30),
    ],
)
def test_the_end_of_a_chunk_moves_to_the_edge_of_a_block(start: int, end: int, expected: int) -> None:
    assert keep_whole(start, end, [(3, 8), (12, 20), (20, 24)]) == expected
