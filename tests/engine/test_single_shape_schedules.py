"""With one shape of each kind, a request goes through the same dispatches alone and batched."""

from __future__ import annotations

import dataclasses

from engine_requests import MAX_MODEL_LEN, STEPS, make_request
from hypothesis import given
from hypothesis import strategies as st

from vinfer.bundle.programs import ProgramShape, is_single_shape, plan_programs
from vinfer.engine.request import Request
from vinfer.engine.schedule import Chunk
from vinfer.engine.scheduler import Scheduler

LENGTH = 8
NUM_SLOTS = 3
SHARED_LENS = {"a": 5, "b": 8, "c": 17, "d": 40}


def single_shapes(**kinds: bool) -> tuple[ProgramShape, ...]:
    return plan_programs(
        prefill_shapes=[(1, LENGTH)],
        slot_buckets=(NUM_SLOTS,),
        steps=STEPS,
        kv_buckets=(MAX_MODEL_LEN,),
        **kinds,
    )


@dataclasses.dataclass
class Seen:
    """The dispatches of a request: (shape, start, length) of its prompt, and the shapes of its decodes."""

    chunks: list[tuple[ProgramShape, int, int]] = dataclasses.field(default_factory=list)
    decodes: set[ProgramShape] = dataclasses.field(default_factory=set)
    copied_from: str | None = None


def run(requests: list[Request], joins_at: list[int]) -> dict[str, Seen]:
    """Run requests, each submitted before its step; copied rows must be filled as for a prompt alone."""
    scheduler = Scheduler(shapes=single_shapes(prompt_logprobs=True), num_slots=NUM_SLOTS, steps=STEPS)
    seen = {request.id: Seen() for request in requests}
    filled: dict[int, list[tuple[int, int]]] = {}
    left = {request.id: request.params.max_tokens for request in requests}
    waiting = sorted(zip(joins_at, requests, strict=True), key=lambda pair: pair[0])
    step = 0
    while waiting or scheduler.num_waiting or scheduler.num_running:
        while waiting and waiting[0][0] <= step:
            scheduler.submit(waiting.pop(0)[1])
        schedule = scheduler.schedule()
        step += 1
        for prefill in schedule.prefills:
            (chunk,) = prefill.chunks
            _fill(filled, chunk)
            seen[chunk.request.id].chunks.append((prefill.shape, chunk.start, chunk.length))
            left[chunk.request.id] -= chunk.samples
        if schedule.decode is not None:
            for owner in schedule.decode.owners:
                seen[owner.id].decodes.add(schedule.decode.shape)
                left[owner.id] -= schedule.decode.step_limit
        for request in requests:
            if scheduler.is_running(request.id) and left[request.id] <= 0:
                scheduler.finish(request.id)
    for request in requests:
        # Copied rows, then its own: together they are split like the prompt alone.
        seen[request.id].chunks = [
            *_copied(seen, request.id),
            *seen[request.id].chunks,
        ]
    return seen


def _fill(filled: dict[int, list[tuple[int, int]]], chunk: Chunk) -> None:
    rows = filled[chunk.copied_from] if chunk.copied_from is not None else filled.get(chunk.slot, [])
    filled[chunk.slot] = [(start, length) for start, length in rows if start < chunk.start]
    assert [start for start, _ in filled[chunk.slot]] == list(range(0, chunk.start, LENGTH))
    assert all(length == LENGTH for _, length in filled[chunk.slot])
    filled[chunk.slot].append((chunk.start, chunk.length))


def _copied(seen: dict[str, Seen], name: str) -> list[tuple[ProgramShape, int, int]]:
    (shape, start, _), *_ = seen[name].chunks
    return [(shape, place, LENGTH) for place in range(0, start, LENGTH)]


@st.composite
def crowds(draw: st.DrawFn) -> tuple[list[Request], list[int]]:
    requests = []
    for place in range(draw(st.integers(1, 9))):
        key = draw(st.sampled_from((None, *SHARED_LENS)))
        prompt_len = SHARED_LENS[key] if key else draw(st.integers(1, 40))
        scores = draw(st.booleans()) and key is None
        requests.append(
            make_request(f"r{place}", prompt_len, draw(st.integers(1, 20)), key=key, scores_prompt=scores)
        )
    return requests, [draw(st.integers(0, 12)) for _ in requests]


@given(crowds())
def test_every_request_goes_through_what_it_goes_through_alone(
    crowd: tuple[list[Request], list[int]],
) -> None:
    requests, joins_at = crowd
    together = run(requests, joins_at)
    for request in requests:
        alone = run([request], [0])[request.id]
        assert together[request.id].chunks == alone.chunks
        assert together[request.id].decodes == alone.decodes


def test_equal_prompts_share_whole_chunks() -> None:
    """16 of 17 tokens are copied, and 32 of 40; the last chunk is prefilled as it would be alone."""
    scheduler = Scheduler(shapes=single_shapes(), num_slots=NUM_SLOTS, steps=STEPS)
    for name in ("first", "second"):
        scheduler.submit(make_request(name, 40, key="key"))
    chunks = []
    for _ in range(8):
        chunks += [chunk for prefill in scheduler.schedule().prefills for chunk in prefill.chunks]
    of_second = [chunk for chunk in chunks if chunk.request.id == "second"]
    assert [(chunk.start, chunk.length, chunk.copied_from) for chunk in of_second] == [(32, 8, 0)]


def test_there_is_a_single_shape_where_each_kind_has_one() -> None:
    assert is_single_shape(single_shapes(prompt_logprobs=True, embeddings=True))
    assert not is_single_shape(
        plan_programs(prefill_shapes=[(1, 8)], slot_buckets=(1, 2), steps=1, kv_buckets=(8,))
    )
    assert not is_single_shape(
        plan_programs(prefill_shapes=[(2, 8)], slot_buckets=(2,), steps=1, kv_buckets=(8,))
    )
