"""Decides which request gets which slot, and what the devices do next.

Pure Python: no text, no arrays, no clock, no thread of its own (the engine thread calls it). For each slot
it counts the most tokens that the device can have produced. The real end of a request is known later, when
its tokens are read.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping

from vinfer.bundle.programs import ProgramKind, ProgramShape, choose_encoder, choose_program, is_single_shape
from vinfer.engine.chunks import ChunkPlan, keep_whole
from vinfer.engine.feature_cache import FeatureCache
from vinfer.engine.request import Request
from vinfer.engine.schedule import Admission, Chunk, Decode, Encode, Prefill, Schedule


class HeldPrompts:
    """Which slot holds the KV rows of which shared prompt, so that a sibling can copy them.

    Tracks `Request.prompt_key` per slot, in the order in which work is enqueued. A slot keeps holding a
    prompt after its request has ended, until another prompt is written into it. The last row of a prompt
    does not count as held: every request prefills its prompt's last token itself, with its own seed.
    """

    def __init__(self) -> None:
        self._keys: dict[int, str] = {}

    def key_of(self, slot: int) -> str | None:
        return self._keys.get(slot)

    def slot_of(self, key: str, preferred: int) -> int | None:
        """Return a slot that holds the prompt, `preferred` if that one does; None if no slot does."""
        if self._keys.get(preferred) == key:
            return preferred
        return next((slot for slot, held in self._keys.items() if held == key), None)

    def hold(self, slot: int, key: str) -> None:
        """Record that the slot holds the whole prompt."""
        self._keys[slot] = key

    def overwrite(self, slot: int, key: str | None) -> None:
        """Record that a prompt is about to be written; rewriting the same prompt changes nothing."""
        if key is None or self._keys.get(slot) != key:
            self._keys.pop(slot, None)


_PROMPT_KINDS: tuple[ProgramKind, ...] = ("prefill", "score", "embed")


def _kind(request: Request) -> ProgramKind:
    """Return the kind of program that reads a request's prompt."""
    if request.pooling is not None:
        return "embed"
    return "score" if request.scores_prompt else "prefill"


@dataclasses.dataclass(slots=True)
class _Running:
    request: Request
    slot: int
    num_prefilled: int = 0
    num_dispatched: int = 0
    """Most tokens that the dispatches so far can have sampled; the first one comes from prefill."""
    holds_features: bool = False
    """Whether its images have pinned rows: from before they are encoded until the prompt is prefilled."""

    @property
    def is_prefilled(self) -> bool:
        return self.num_prefilled == len(self.request.prompt_ids)

    @property
    def num_left(self) -> int:
        return self.request.params.max_tokens - self.num_dispatched

    @property
    def max_kv_len(self) -> int:
        """Most rows of the KV cache that the device can have filled; the newest token is not in it yet."""
        return self.num_prefilled + max(self.num_dispatched - 1, 0)


class Scheduler:
    """Continuous batching over slots.

    Policy: waiting requests take free slots by priority, lowest value first; ties are first come, first
    served. A running request keeps its slot. Between two decode dispatches there is one prefill dispatch, or
    several of at most `max_prefill_tokens` padded prompt tokens in total (the largest bucket), so a running
    request never waits longer than that. A decode dispatch runs a single step while any request is waiting
    or being prefilled, or while a running request is constrained.

    Of the requests with the same prompt_key, the oldest prefills. The others wait for it, copy its rows and
    prefill the last token. With single shapes they prefill the whole last chunk, so that every prompt is
    split the same way whether it is shared or not. If the oldest is cancelled halfway, the next one takes
    over. A slot may be copied from after its request has ended and even after it has a new owner: the copies
    of a dispatch are enqueued before the dispatch, and `HeldPrompts` forgets a prompt once a dispatch
    overwrites it.

    A prompt with images is prefilled once all of them are encoded. A chunk may split an image whose
    attention is causal; with `keeps_images_whole` none does. While requests decode, an encoder dispatch
    replaces the prefills, but only every other time if prompts are due. So neither starves, and a running
    request waits for one of the two at most.

    Args:
        shapes: the compiled programs.
        num_slots: rows of the batch.
        steps: most decode steps per dispatch.
        dispatch_cost_tokens: see `ChunkPlan`.
        min_prefill_tokens: lower limit of max_prefill_tokens, for configs with only short buckets.
        num_feature_rows: rows of the feature array; 0 for a model without images.
        max_features: for every image encoder, the most features of one image.
        keeps_images_whole: every image lies in one chunk; none has more tokens than the largest bucket.
    """

    def __init__(
        self,
        *,
        shapes: Iterable[ProgramShape],
        num_slots: int,
        steps: int,
        dispatch_cost_tokens: int | None = None,
        min_prefill_tokens: int = 0,
        num_feature_rows: int = 0,
        max_features: Mapping[ProgramShape, int] | None = None,
        keeps_images_whole: bool = False,
    ) -> None:
        self._shapes = tuple(shapes)
        self._steps = steps
        self._is_single_shape = is_single_shape(self._shapes)
        prefills = [shape for shape in self._shapes if shape.kind == "prefill"]
        lengths = {shape.length for shape in prefills}
        # Prefilling a shorter prompt costs no more than prefilling its last token.
        self._min_shared_len = min(lengths) + 1
        self._chunk_plans = {
            kind: ChunkPlan(of_kind, dispatch_cost_tokens)
            for kind in _PROMPT_KINDS
            if (of_kind := {shape.length for shape in self._shapes if shape.kind == kind})
        }
        self._max_batch = max(shape.rows for shape in prefills)
        self._max_prefill_tokens = max(min_prefill_tokens, *(shape.length for shape in prefills))
        self._num_slots = num_slots
        self._free = list(range(num_slots))
        # A heap of (priority, arrival number, request).
        self._waiting: list[tuple[int, int, Request]] = []
        self._arrivals = itertools.count()
        self._running: dict[str, _Running] = {}
        self._held = HeldPrompts()
        self.features = FeatureCache(num_feature_rows)
        self._max_features = dict(max_features or {})
        self._max_images = max((shape.rows for shape in self._max_features), default=0)
        self._has_just_encoded = False
        self._keeps_images_whole = keeps_images_whole

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_constrained(self) -> bool:
        """Whether a running request is constrained; all tokens are then read before `schedule`."""
        return any(running.request.grammar is not None for running in self._running.values())

    @property
    def num_kv_rows(self) -> int:
        """Rows of the KV cache that running requests may have filled."""
        return sum(running.max_kv_len for running in self._running.values())

    def submit(self, request: Request) -> None:
        """Put a request in the queue."""
        heapq.heappush(self._waiting, (request.priority, next(self._arrivals), request))

    def is_running(self, request_id: str) -> bool:
        return request_id in self._running

    def finish(self, request_id: str) -> None:
        """Free the slot of a request, or remove it from the queue; unknown ids are ignored.

        The slot may be reused at once. The device works in order, so whatever an older dispatch still does
        to the slot happens before the new owner's row is written.
        """
        running = self._running.pop(request_id, None)
        if running is not None:
            heapq.heappush(self._free, running.slot)
            self._let_go_of_features(running)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2].id != request_id]
            heapq.heapify(self._waiting)

    def drop_all(self) -> list[str]:
        """Drop every request and return their ids."""
        ids = [*self._running, *(request.id for _, _, request in self._waiting)]
        for request_id in ids:
            self.finish(request_id)
        return ids

    def schedule(self) -> Schedule:
        """Decide what to enqueue now, and count it as done."""
        admissions = self._admit()
        # The mask of the second token depends on the first, which a prompt that ends now does not have yet.
        unmasked = {
            running.slot
            for running in self._running.values()
            if running.request.grammar is not None and not running.is_prefilled
        }
        is_decoding = any(r.is_prefilled and r.num_left > 0 for r in self._running.values())
        encode = self._plan_encode(is_decoding=is_decoding)
        prefills = () if encode is not None and is_decoding else self._plan_prefills()
        return Schedule(admissions, encode, prefills, self._plan_decode(unmasked))

    def _admit(self) -> tuple[Admission, ...]:
        admissions = []
        while self._waiting and self._free:
            _, _, request = heapq.heappop(self._waiting)
            slot = self._take_slot(request)
            self._running[request.id] = _Running(request, slot)
            admissions.append(Admission(slot, request))
        return tuple(admissions)

    def _take_slot(self, request: Request) -> int:
        """Return the free slot that already holds the request's prompt, or else the lowest one."""
        key = self._shared_key(request)
        held = [slot for slot in self._free if key is not None and self._held.key_of(slot) == key]
        if not held:
            return heapq.heappop(self._free)
        self._free.remove(held[0])
        heapq.heapify(self._free)
        return held[0]

    def _shared_key(self, request: Request) -> str | None:
        """Return the key under which a request shares its prompt; None if it does not share."""
        if _kind(request) != "prefill" or len(request.prompt_ids) < self._min_shared_len:
            return None
        # A request that shares a prompt prefills only the last token, which would split the block.
        if any(behind == len(request.prompt_ids) for _, behind in self._whole_blocks(request)):
            return None
        return request.prompt_key

    def _whole_blocks(self, request: Request) -> list[tuple[int, int]]:
        """Return the (first token, one past the last) of each block that no chunk may split."""
        if not self._keeps_images_whole:
            return []
        return [(image.start, image.start + image.num_tokens) for image in request.images]

    def _plan_encode(self, *, is_decoding: bool) -> Encode | None:
        """Choose images for the encoder; the oldest prompts come first."""
        for running in self._running.values():
            if running.is_prefilled or running.holds_features or not running.request.images:
                continue
            if not self.features.pin(running.request.images):
                # Younger prompts wait too, or they would take the rows that the oldest waits for.
                break
            running.holds_features = True
        waiting = self.features.next_to_encode(self._max_images)
        if not waiting:
            return None
        if self._has_just_encoded and is_decoding and any(True for _ in self._due_chunks()):
            self._has_just_encoded = False
            return None
        self._has_just_encoded = True
        shape, num_taken = choose_encoder(self._max_features, [image.num_tokens for image in waiting])
        images = waiting[:num_taken]
        self.features.encoded(images)
        return Encode(shape, tuple(images), tuple(self.features.rows_of(image) for image in images))

    def _let_go_of_features(self, running: _Running) -> None:
        if running.holds_features:
            self.features.unpin(running.request.images)
            running.holds_features = False

    def _sees_images(self, running: _Running) -> bool:
        """Return whether every image of a prompt is encoded before the work being planned."""
        images = running.request.images
        return not images or (running.holds_features and self.features.are_encoded(images))

    def _chunk(self, running: _Running, start: int, length: int, copied_from: int | None = None) -> Chunk:
        request = running.request
        rows: tuple[int, ...] = ()
        if request.images:
            assert not request.scores_prompt, f"{request.id}: score programs take no images"
            placed = [-1] * len(request.prompt_ids)
            for image in request.images:
                placed[image.start : image.start + image.num_tokens] = self.features.rows_of(image)
            rows = tuple(placed[start : start + length])
        return Chunk(running.slot, request, start, length, copied_from, rows)

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
                running.num_prefilled = chunk.start + chunk.length
                running.num_dispatched += chunk.samples
                key = self._shared_key(chunk.request)
                if chunk.is_final and key is not None:
                    self._held.hold(chunk.slot, key)
                if chunk.is_final:
                    self._let_go_of_features(running)
            prefills.append(Prefill(shape, tuple(chunks)))
        return tuple(prefills)

    def _next_chunks(self) -> list[Chunk]:
        """Return the next chunk of the oldest unfinished prompt, and other chunks of the same bucket."""
        chunks: list[Chunk] = []
        bucket = 0
        for chunk in self._due_chunks():
            shape = self._prefill_shape([chunk])
            if chunks and (
                shape.kind == "score" or (shape.kind, shape.length) != (_kind(chunks[0].request), bucket)
            ):
                continue
            bucket = shape.length
            chunks.append(chunk)
            self._held.overwrite(chunk.slot, self._shared_key(chunk.request))
            if shape.kind == "score" or len(chunks) == self._max_batch:
                break
        # A longer program would pad every chunk beyond its own bucket and cost more than separate dispatches.
        while len(chunks) > 1 and not self._has_program(
            _kind(chunks[0].request), rows=len(chunks), length=bucket
        ):
            chunks.pop()
        return chunks

    def _due_chunks(self) -> Iterator[Chunk]:
        """Yield the next chunk of every prompt that is not waiting for a sibling, oldest first."""
        prefilling: set[str] = set()
        for running in self._running.values():
            if running.is_prefilled or not self._sees_images(running):
                continue
            request, start = running.request, running.num_prefilled
            key = self._shared_key(request)
            if key is not None and start == 0:
                held = self._held.slot_of(key, preferred=running.slot)
                if held is not None:
                    yield self._after_copy(running, held)
                    continue
            if key in prefilling:
                continue
            if key is not None:
                prefilling.add(key)
            yield self._chunk(running, start, self._chunk_end(request, start) - start)

    def _chunk_end(self, request: Request, start: int) -> int:
        """Return the end of the chunk that begins at `start`."""
        plan = self._chunk_plans.get(_kind(request))
        assert plan is not None, f"{request.id} needs a {_kind(request)} program and the bundle has none"
        end = start + plan.next_length(len(request.prompt_ids) - start)
        return keep_whole(start, end, self._whole_blocks(request))

    def _after_copy(self, running: _Running, held: int) -> Chunk:
        """Return the chunk that is left of a prompt whose rows another slot, or this one, still holds."""
        request, prompt_len = running.request, len(running.request.prompt_ids)
        start = prompt_len - 1
        if self._is_single_shape:
            start = 0
            while (end := self._chunk_end(request, start)) < prompt_len:
                start = end
        return self._chunk(running, start, prompt_len - start, copied_from=held)

    def _has_program(self, kind: ProgramKind, *, rows: int, length: int) -> bool:
        return any(
            shape.kind == kind and shape.rows >= rows and shape.length == length for shape in self._shapes
        )

    def _prefill_shape(self, chunks: list[Chunk]) -> ProgramShape:
        return choose_program(
            self._shapes,
            _kind(chunks[0].request),
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
        step_limit = min(self._steps if is_idle and not self.is_constrained else 1, most)
        kv_length = max(r.max_kv_len + min(step_limit, r.num_left) for r in rows)
        shape = choose_program(self._shapes, "decode", rows=len(rows), length=step_limit, kv_length=kv_length)
        for running in rows:
            running.num_dispatched += min(step_limit, running.num_left)
        return Decode(shape, tuple(r.slot for r in rows), tuple(r.request for r in rows), step_limit)

    def check_integrity(self) -> None:
        """Raise AssertionError if slots were lost, shared or counted wrongly."""
        used = [running.slot for running in self._running.values()]
        assert sorted(used + self._free) == list(range(self._num_slots)), (used, self._free)
        for running in self._running.values():
            prompt_len = len(running.request.prompt_ids)
            assert 0 <= running.num_prefilled <= prompt_len
            assert 0 <= running.num_dispatched <= running.request.params.max_tokens
            assert running.num_dispatched == 0 or running.is_prefilled
            key = self._shared_key(running.request)
            assert not running.is_prefilled or key is None or self._held.key_of(running.slot) == key
        assert not {request.id for _, _, request in self._waiting} & set(self._running)
        self.features.check_integrity()
        assert not any(running.holds_features and running.is_prefilled for running in self._running.values())
