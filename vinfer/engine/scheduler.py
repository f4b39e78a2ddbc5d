"""Which request gets which slot, and what the devices do next.

Pure Python: no text, no arrays, no clock, no thread of its own (the engine thread calls it). It counts, per
slot, how far the device can have come at most; the true end of a request comes later, with its tokens.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections import deque
from collections.abc import Iterable

from vinfer.bundle import ProgramShape, choose_program
from vinfer.engine.chunks import ChunkPlan
from vinfer.engine.request import Request


@dataclasses.dataclass(frozen=True, slots=True)
class Admission:
    """Write a request's row into its slot."""

    slot: int
    request: Request


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of one prompt."""

    slot: int
    request: Request
    start: int
    length: int

    @property
    def is_final(self) -> bool:
        return self.start + self.length == len(self.request.prompt_ids)


@dataclasses.dataclass(frozen=True, slots=True)
class Prefill:
    shape: ProgramShape
    chunks: tuple[Chunk, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Decode:
    """One multi-step decode dispatch; `owners[i]` is the request whose tokens row i yields."""

    shape: ProgramShape
    slots: tuple[int, ...]
    owners: tuple[Request, ...]
    step_limit: int


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """Work in the order in which it must be enqueued: admissions, prefills, decode."""

    admissions: tuple[Admission, ...] = ()
    prefills: tuple[Prefill, ...] = ()
    decode: Decode | None = None

    def __bool__(self) -> bool:
        return bool(self.admissions or self.prefills or self.decode)


@dataclasses.dataclass(slots=True)
class _Running:
    request: Request
    slot: int
    num_prefilled: int = 0
    num_dispatched: int = 0
    """Tokens that dispatches so far can have sampled at most; the first one comes from prefill."""

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == len(self.request.prompt_ids)

    @property
    def num_left(self) -> int:
        return self.request.params.max_tokens - self.num_dispatched

    @property
    def max_kv_len(self) -> int:
        """Rows of the KV cache that the device has filled at most: the newest token is not in it yet."""
        return self.num_prefilled + max(self.num_dispatched - 1, 0)


class Scheduler:
    """Continuous batching over slots.

    Policy: waiting requests take free slots in order of arrival. Between two decode dispatches there is one
    prefill dispatch, or several of at most `max_prefill_tokens` padded prompt tokens together (the
    largest bucket), so that a running request never waits for more than that. While anything waits or is
    being prefilled, or a running request is bound to a grammar, a decode dispatch runs one step.

    Args:
        shapes: the compiled programs.
        num_slots: rows of the batch.
        steps: most decode steps per dispatch.
        dispatch_cost_tokens: see `ChunkPlan`.
        min_prefill_tokens: least that max_prefill_tokens may be, for configs with short buckets only.
    """

    def __init__(
        self,
        *,
        shapes: Iterable[ProgramShape],
        num_slots: int,
        steps: int,
        dispatch_cost_tokens: int | None = None,
        min_prefill_tokens: int = 0,
    ) -> None:
        self._shapes = tuple(shapes)
        self._steps = steps
        prefills = [shape for shape in self._shapes if shape.kind == "prefill"]
        self._chunk_plan = ChunkPlan({shape.length for shape in prefills}, dispatch_cost_tokens)
        self._max_batch = max(shape.rows for shape in prefills)
        self._max_prefill_tokens = max(min_prefill_tokens, *(shape.length for shape in prefills))
        self._num_slots = num_slots
        self._free = list(range(num_slots))
        self._waiting: deque[Request] = deque()
        self._running: dict[str, _Running] = {}

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_bound(self) -> bool:
        """Whether a running request is bound to a grammar: then all tokens are read before `schedule`."""
        return any(running.request.grammar is not None for running in self._running.values())

    @property
    def num_kv_rows(self) -> int:
        """Rows of the KV cache that running requests may have filled."""
        return sum(running.max_kv_len for running in self._running.values())

    def submit(self, request: Request) -> None:
        """Append a request to the queue."""
        self._waiting.append(request)

    def is_running(self, request_id: str) -> bool:
        return request_id in self._running

    def finish(self, request_id: str) -> None:
        """Free the slot of a request, or take it out of the queue; unknown ids are ignored.

        The slot may be given away at once: the device works in order, so whatever an older dispatch still
        does to the slot happens before the new owner's row is written.
        """
        running = self._running.pop(request_id, None)
        if running is not None:
            heapq.heappush(self._free, running.slot)
        else:
            self._waiting = deque(request for request in self._waiting if request.id != request_id)

    def drop_all(self) -> list[str]:
        """Forget every request; return their ids."""
        ids = [*self._running, *(request.id for request in self._waiting)]
        for request_id in ids:
            self.finish(request_id)
        return ids

    def schedule(self) -> Schedule:
        """Decide what to enqueue now and count it as done."""
        admissions = self._admit()
        # The mask of a second token needs the first, which is not there yet where the prompt ends only now.
        unmasked = {
            running.slot
            for running in self._running.values()
            if running.request.grammar is not None and not running.is_prefilled
        }
        prefills = self._plan_prefills()
        return Schedule(admissions, prefills, self._plan_decode(unmasked))

    def _admit(self) -> tuple[Admission, ...]:
        admissions = []
        while self._waiting and self._free:
            request = self._waiting.popleft()
            slot = heapq.heappop(self._free)
            self._running[request.id] = _Running(request, slot)
            admissions.append(Admission(slot, request))
        return tuple(admissions)

    def _plan_prefills(self) -> tuple[Prefill, ...]:
        prefills: list[Prefill] = []
        budget = self._max_prefill_tokens
        while budget > 0:
            chunks = self._next_chunks()
            if not chunks:
                break
            shape = self._prefill_shape(chunks)
            if prefills and shape.rows * shape.length > budget:
                break
            budget -= shape.rows * shape.length
            for chunk in chunks:
                running = self._running[chunk.request.id]
                running.num_prefilled += chunk.length
                running.num_dispatched += chunk.is_final
            prefills.append(Prefill(shape, tuple(chunks)))
        return tuple(prefills)

    def _next_chunks(self) -> list[Chunk]:
        """Return the next chunk of the oldest unfinished prompt, with chunks of others of the same bucket."""
        chunks: list[Chunk] = []
        for running in self._running.values():
            if running.is_prefilled:
                continue
            left = len(running.request.prompt_ids) - running.num_prefilled
            length = self._chunk_plan.next_length(left)
            chunk = Chunk(running.slot, running.request, running.num_prefilled, length)
            if not chunks:
                chunks.append(chunk)
                bucket = self._prefill_shape(chunks).length
            elif self._prefill_shape([chunk]).length == bucket:
                chunks.append(chunk)
            if len(chunks) == self._max_batch:
                break
        # A wider program would pad every chunk beyond its own bucket and cost more than one by one.
        while len(chunks) > 1 and not self._has_program(rows=len(chunks), length=bucket):
            chunks.pop()
        return chunks

    def _has_program(self, *, rows: int, length: int) -> bool:
        return any(
            shape.kind == "prefill" and shape.rows >= rows and shape.length == length
            for shape in self._shapes
        )

    def _prefill_shape(self, chunks: list[Chunk]) -> ProgramShape:
        return choose_program(
            self._shapes,
            "prefill",
            rows=len(chunks),
            length=max(chunk.length for chunk in chunks),
            kv_length=max(chunk.start + chunk.length for chunk in chunks),
        )

    def _plan_decode(self, unmasked: set[int]) -> Decode | None:
        rows = [
            running
            for running in self._running.values()
            if running.is_prefilled and running.num_left > 0 and running.slot not in unmasked
        ]
        if not rows:
            return None
        is_idle = not self._waiting and all(running.is_prefilled for running in self._running.values())
        most = max(running.num_left for running in rows)
        step_limit = min(self._steps if is_idle and not self.is_bound else 1, most)
        kv_length = max(r.max_kv_len + min(step_limit, r.num_left) for r in rows)
        shape = choose_program(self._shapes, "decode", rows=len(rows), length=step_limit, kv_length=kv_length)
        for running in rows:
            running.num_dispatched += min(step_limit, running.num_left)
        return Decode(shape, tuple(r.slot for r in rows), tuple(r.request for r in rows), step_limit)

    def check_integrity(self) -> None:
        """Raise AssertionError where slots were lost, shared or counted wrongly."""
        used = [running.slot for running in self._running.values()]
        assert sorted(used + self._free) == list(range(self._num_slots)), (used, self._free)
        for running in self._running.values():
            prompt_len = len(running.request.prompt_ids)
            assert 0 <= running.num_prefilled <= prompt_len
            assert 0 <= running.num_dispatched <= running.request.params.max_tokens
            assert running.num_dispatched == 0 or running.is_prefilled
        assert not {request.id for request in self._waiting} & set(self._running)
