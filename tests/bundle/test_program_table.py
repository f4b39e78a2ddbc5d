"""Every dispatch that a configuration allows finds a compiled program, and the cheapest one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vinfer.bundle.program_table import ProgramTable
from vinfer.bundle.programs import ProgramKind, ProgramShape, plan_programs
from vinfer.config.shapes import slot_buckets


@st.composite
def configurations(draw: st.DrawFn) -> tuple[tuple[ProgramShape, ...], int, int]:
    """Draw (programs, num_slots, steps)."""
    max_model_len = draw(st.integers(1, 5000))
    dp = draw(st.sampled_from((1, 2)))
    growth = draw(st.sampled_from((2, 4)))
    num_slots = dp * draw(st.integers(1, 20))
    pairs = st.tuples(st.integers(1, num_slots), st.integers(1, max_model_len))
    shapes = plan_programs(
        prefill_shapes=draw(st.sets(pairs, min_size=1, max_size=6)),
        slot_buckets=slot_buckets(num_slots, dp, growth=growth),
        steps=(steps := draw(st.integers(1, 16))),
        prompt_logprobs=True,
        embeddings=True,
    )
    return shapes, num_slots, steps


def covers(shape: ProgramShape, kind: ProgramKind, rows: int, length: int) -> bool:
    return shape.kind == kind and shape.rows >= rows and shape.length >= length


def check_choice(shapes: tuple[ProgramShape, ...], kind: ProgramKind, *, rows: int, length: int) -> None:
    chosen = ProgramTable(shapes).choose(kind, rows=rows, length=length)
    assert covers(chosen, kind, rows, length)
    others = [shape for shape in shapes if covers(shape, kind, rows, length)]
    cost = chosen.rows * chosen.length
    assert cost == min(shape.rows * shape.length for shape in others)
    assert chosen.length == min(s.length for s in others if s.rows * s.length == cost)


@given(configurations(), st.data())
def test_a_chunk_of_one_prompt_always_finds_a_program(
    configuration: tuple[tuple[ProgramShape, ...], int, int], data: st.DataObject
) -> None:
    shapes, _, _ = configuration
    longest = max(shape.length for shape in shapes if shape.kind == "prefill")
    length = data.draw(st.integers(1, longest), label="length")
    check_choice(shapes, "prefill", rows=1, length=length)
    check_choice(shapes, "score", rows=1, length=length)
    check_choice(shapes, "embed", rows=1, length=length)


@given(configurations(), st.data())
def test_a_batch_of_chunks_finds_a_program_wherever_one_has_the_rows(
    configuration: tuple[tuple[ProgramShape, ...], int, int], data: st.DataObject
) -> None:
    shapes, _, _ = configuration
    wide = data.draw(
        st.sampled_from([shape for shape in shapes if shape.kind in ("prefill", "embed")]), label="program"
    )
    rows = data.draw(st.integers(1, wide.rows), label="rows")
    length = data.draw(st.integers(1, wide.length), label="length")
    check_choice(shapes, wide.kind, rows=rows, length=length)


@given(configurations(), st.data())
def test_a_decode_dispatch_always_finds_a_program(
    configuration: tuple[tuple[ProgramShape, ...], int, int], data: st.DataObject
) -> None:
    shapes, num_slots, steps = configuration
    check_choice(
        shapes,
        "decode",
        rows=data.draw(st.integers(1, num_slots), label="rows"),
        length=data.draw(st.integers(1, steps), label="steps"),
    )


@pytest.mark.parametrize(
    ("rows", "length", "chosen"),
    [(1, 1, "prefill[1,64]"), (1, 65, "prefill[1,256]"), (2, 64, "prefill[4,64]"), (1, 64, "prefill[1,64]")],
)
def test_the_cheapest_program_that_covers_a_dispatch_runs(rows: int, length: int, chosen: str) -> None:
    shapes = plan_programs(prefill_shapes=[(1, 64), (4, 64), (1, 256)], slot_buckets=[1], steps=8)
    assert ProgramTable(shapes).choose("prefill", rows=rows, length=length).name == chosen


def test_the_encoder_is_as_small_as_takes_the_images_that_wait() -> None:
    small, pair, large, four = (
        ProgramShape(kind="encode_images", rows=rows, image=(3, side, side))
        for rows, side in ((1, 28), (2, 28), (1, 56), (4, 112))
    )
    encoders = {four: 64, large: 16, pair: 4, small: 4}
    chosen = {
        (4,): (small, 1),
        (1, 4): (pair, 2),
        (2, 2, 2): (pair, 2),
        (4, 5, 4): (small, 1),
        (5, 4): (large, 1),
        (17, 1, 64, 3, 2): (four, 4),
    }
    table = ProgramTable(encoders, encoders)
    assert {waiting: table.choose_encoder(waiting) for waiting in chosen} == chosen
