"""What is in a schedule, as plain tuples that tests compare."""

from __future__ import annotations

from vinfer.engine.schedule import Schedule


def admitted(schedule: Schedule) -> list[tuple[str, int]]:
    return [(admission.request.id, admission.slot) for admission in schedule.admissions]


def prefilled(schedule: Schedule) -> list[tuple[int, int, list[tuple[str, int, int]]]]:
    """Return (rows, padded length, [(request, start, length)]) of every prefill."""
    return [
        (
            prefill.shape.rows,
            prefill.shape.length,
            [(chunk.request.id, chunk.start, chunk.length) for chunk in prefill.chunks],
        )
        for prefill in schedule.prefills
    ]


def decoded(schedule: Schedule) -> tuple[list[str], int] | None:
    """Return (requests, step limit) of the decode dispatch."""
    if schedule.decode is None:
        return None
    return [owner.id for owner in schedule.decode.owners], schedule.decode.step_limit


def encoded(schedule: Schedule) -> tuple[int, list[str]] | None:
    """Return (images of the program, content hash of each) of the encoder dispatch."""
    if schedule.encode is None:
        return None
    return schedule.encode.shape.rows, [image.content_hash for image in schedule.encode.images]


def begun(schedule: Schedule) -> list[tuple[str, int, int, bool]]:
    """Return (request, start, cached positions, whether a page is copied) of every chunk."""
    return [
        (chunk.request.id, chunk.start, chunk.num_cached, chunk.copy is not None)
        for prefill in schedule.prefills
        for chunk in prefill.chunks
    ]
