"""Decides which request gets which slot, and what the devices do next.

Pure Python: no text, no arrays, no clock, no thread of its own (the engine thread calls it). For each slot
it counts the most tokens that the device can have produced. The real end of a request is known later, when
its tokens are read.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vinfer.bundle.programs import ProgramKind, ProgramShape, choose_encoder, choose_program, is_single_shape
from vinfer.engine.chunks import ChunkPlan, keep_whole
from vinfer.engine.feature_cache import FeatureCache
from vinfer.engine.pages import PageCopy, ShardPages, total_owned
from vinfer.engine.prefix_keys import PrefixKeys
from vinfer.engine.request import Request
from vinfer.engine.running import Running, prompt_kind
from vinfer.engine.schedule import Admission, Chunk, Decode, Encode, Prefill, Schedule

_PROMPT_KINDS: tuple[ProgramKind, ...] = ("prefill", "score", "embed")


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """A request without a slot; `outputs` are the tokens that it had when it gave its pages back."""

    request: Request
    arrival: int
    outputs: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """The positions of a chunk, from `start` to `end`, and the key of the partial page to copy before it."""

    start: int
    end: int
    copied_part: bytes | None = None


class Scheduler:
    """Continuous batching over slots.

    Policy: waiting requests take free slots by priority, lowest value first; ties are first come, first
    served. A running request keeps its slot. Between two decode dispatches there is one prefill dispatch, or
    several of at most `max_prefill_tokens` padded prompt tokens in total (the largest bucket), so a running
    request never waits longer than that. A decode dispatch runs a single step while any request is waiting
    or being prefilled, or while a running request is constrained.

    A request is admitted when there are pages for its whole prompt. A prompt begins with the pages of others
    that hold the same tokens. If an older request is about to write such pages, it waits for them. A page
    that is full in one prompt and partly equal in another is not shared, except for the last page of equal
    prompts, which is copied. With single shapes, a prompt begins with whole chunks only, so that every prompt
    is split the same way whether it is shared or not.

    If decoding needs more pages than there are, the youngest request of the tenant that holds the most gives
    its pages back and waits again. Later it is prefilled with the tokens that it had, and goes on. With
    single shapes, a request is admitted when there are pages for its whole answer too, because the bits of
    prefill are not those of decode.

    A prompt with images is prefilled once all of them are encoded. A chunk may split an image whose
    attention is causal; with `keeps_images_whole` none does. While requests decode, an encoder dispatch
    replaces the prefills, but only every other time if prompts are due. So neither starves, and a running
    request waits for one of the two at most.

    Args:
        shapes: the compiled programs.
        num_slots: rows of the batch.
        pages: of each dp shard; slots are divided among the shards in order.
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
        pages: Sequence[ShardPages],
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
        self._chunk_plans = {
            kind: ChunkPlan(of_kind, dispatch_cost_tokens)
            for kind in _PROMPT_KINDS
            if (of_kind := {shape.length for shape in self._shapes if shape.kind == kind})
        }
        self._max_batch = max(shape.rows for shape in prefills)
        self._max_prefill_len = max(shape.length for shape in prefills)
        self._max_prefill_tokens = max(min_prefill_tokens, *(shape.length for shape in prefills))
        self._num_slots = num_slots
        self._pages = tuple(pages)
        self._slots_per_shard = num_slots // len(self._pages)
        self._free = list(range(num_slots))
        # A heap of (priority, arrival number, what waits).
        self._waiting: list[tuple[int, int, _Waiting]] = []
        self._arrivals = itertools.count()
        self._running: dict[str, Running] = {}
        self.num_preemptions = 0
        self.num_prefix_queries = 0
        """Prompt tokens of requests that could have found pages, and how many of them were found."""
        self.num_prefix_hits = 0
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
    def kv_usage_fraction(self) -> float:
        """The part of all pages that requests hold."""
        num_owned, num_pages = total_owned(self._pages)
        return num_owned / num_pages

    def submit(self, request: Request) -> None:
        """Put a request in the queue."""
        self._wait(_Waiting(request, next(self._arrivals)))

    def _wait(self, waiting: _Waiting) -> None:
        heapq.heappush(self._waiting, (waiting.request.priority, waiting.arrival, waiting))

    def is_running(self, request_id: str) -> bool:
        return request_id in self._running

    def observe(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Record tokens that were read from the device, in order; also those of one that waits again."""
        running = self._running.get(request_id)
        if running is not None:
            running.tokens += token_ids
            if not self._is_single_shape:
                running.publish()
            return
        for place, (priority, arrival, waiting) in enumerate(self._waiting):
            if waiting.request.id == request_id:
                grown = dataclasses.replace(waiting, outputs=(*waiting.outputs, *token_ids))
                # The heap's order does not depend on it.
                self._waiting[place] = (priority, arrival, grown)

    def finish(self, request_id: str) -> None:
        """Free the slot and the pages of a request, or remove it from the queue; unknown ids are ignored.

        Both may be reused at once. The device works in order, so whatever an older dispatch still does
        to them happens before the new owner's work.
        """
        running = self._running.get(request_id)
        if running is not None:
            self._leave(running)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2].request.id != request_id]
            heapq.heapify(self._waiting)

    def _leave(self, running: Running) -> None:
        """Take a request's slot and pages away."""
        del self._running[running.request.id]
        heapq.heappush(self._free, running.slot)
        running.shard.close(running.table)
        self._let_go_of_features(running)

    def drop_all(self) -> list[str]:
        """Drop every request and return their ids."""
        ids = [*self._running, *(waiting.request.id for _, _, waiting in self._waiting)]
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
        unread = {chunk.request.id for prefill in prefills for chunk in prefill.chunks}
        return Schedule(admissions, encode, prefills, self._plan_decode(unmasked, unread))

    def _admit(self) -> tuple[Admission, ...]:
        admissions = []
        while self._waiting and self._free:
            running = self._place(self._waiting[0][2])
            if running is None:
                # Younger requests wait too, or a long prompt would wait for ever.
                break
            heapq.heappop(self._waiting)
            self._free.remove(running.slot)
            heapq.heapify(self._free)
            self._running[running.request.id] = running
            admissions.append(Admission(running.slot, running.request, running.outputs))
        return tuple(admissions)

    def _place(self, waiting: _Waiting) -> Running | None:
        """Choose a slot in the dp shard that has most of the prompt, then the most memory; None to wait."""
        request = waiting.request
        tokens = [*request.prompt_ids, *waiting.outputs]
        num_positions = len(tokens)
        if self._is_single_shape:
            num_positions += request.params.max_tokens
        keys = self._keys(request, tokens)
        best: tuple[tuple[int, int], int, ShardPages] | None = None
        for slot in sorted(self._free):
            shard = self._pages[slot // self._slots_per_shard]
            if best is not None and best[2] is shard:
                continue
            num_found = 0 if keys is None else self._find(shard, keys, request, len(tokens))
            num_needed = shard.num_needed(keys, num_found=num_found, num_positions=num_positions)
            num_spare = shard.num_promisable() - num_needed
            rank = (num_found, num_spare)
            if num_spare >= 0 and (best is None or rank > best[0]):
                best = (rank, slot, shard)
        if best is None:
            return None
        (num_found, _), slot, shard = best
        running = Running(
            request=request,
            arrival=waiting.arrival,
            slot=slot,
            shard=shard,
            table=shard.open(num_positions),
            outputs=waiting.outputs,
            tokens=tokens,
            keys=keys,
        )
        if running.finds_pages and not waiting.outputs:
            self.num_prefix_queries += len(tokens)
        if keys is not None and num_found:
            self._begin_with(running, num_found)
        return running

    def _keys(self, request: Request, tokens: list[int]) -> PrefixKeys | None:
        if request.cache_scope is None:
            return None
        return PrefixKeys(request.cache_scope, tokens, request.images, self._pages[0].page_size)

    def _find(
        self, shard: ShardPages, keys: PrefixKeys, request: Request, num_tokens: int, first: int = 0
    ) -> int:
        """Return how many pages a prompt may begin with: not all of it, and no part of a whole block."""
        if prompt_kind(request) != "prefill":
            return 0
        # The last token is always computed, for its logits.
        num_found = shard.find(keys, first=first, last=(num_tokens - 1) // shard.page_size)
        while num_found > first and not self._is_edge(request, num_found * shard.page_size):
            num_found -= 1
        # What a window needs was there for the longer part, and need not be for the shorter one.
        return num_found if shard.find(keys, first=first, last=num_found) == num_found else first

    def _is_edge(self, request: Request, position: int) -> bool:
        """Return whether a prompt that begins at a position is split as if it had begun at 0."""
        if self._is_single_shape and position % self._max_prefill_len:
            return False
        return not any(start < position < behind for start, behind in self._whole_blocks(request))

    def _begin_with(self, running: Running, num_pages: int) -> None:
        """Let a request have pages of others, and skip their positions."""
        assert running.keys is not None
        running.shard.share(running.table, running.keys, num_pages=num_pages)
        self._skip_to(running, num_pages * running.shard.page_size)

    def _skip_to(self, running: Running, position: int) -> None:
        skipped = position - running.num_prefilled
        running.num_prefilled = position
        running.num_published = max(running.num_published, position)
        if not running.outputs:
            running.num_cached += skipped
            self.num_prefix_hits += skipped

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

    def _let_go_of_features(self, running: Running) -> None:
        if running.holds_features:
            self.features.unpin(running.request.images)
            running.holds_features = False

    def _sees_images(self, running: Running) -> bool:
        """Return whether every image of a prompt is encoded before the work being planned."""
        images = running.request.images
        return not images or (running.holds_features and self.features.are_encoded(images))

    def _plan_prefills(self) -> tuple[Prefill, ...]:
        prefills: list[Prefill] = []
        budget = self._max_prefill_tokens
        while budget > 0:
            chunks = self._next_chunks()
            if not chunks:
                break
            shape = self._prefill_shape([chunk for chunk, _ in chunks], chunks[0][1].kind)
            if prefills and shape.rows * shape.length > budget:
                break
            budget -= shape.rows * shape.length
            # All copies come first, as on the device: a chunk may write over a page that was copied.
            copies = [self._copy_part(*chunk) for chunk in chunks]
            prefilled = [
                self._prefilled(span, running, copy)
                for (span, running), copy in zip(chunks, copies, strict=True)
                # A page without owners may have become that of another copy. Then the prompt waits.
                if copy is not None or span.copied_part is None
            ]
            assert prefilled, "pages for the whole prompt are promised"
            for _, running in chunks:
                # Only now: a page that is replaced by its like may not go to another chunk of the dispatch.
                self._publish(running)
            prefills.append(Prefill(shape, tuple(prefilled)))
        return tuple(prefills)

    def _copy_part(self, span: _Span, running: Running) -> PageCopy | None:
        """Copy the partial page before a span, if it has one that is still there."""
        if span.copied_part is None:
            return None
        copy = running.shard.copy_part(
            running.table, span.copied_part, start=running.num_prefilled, end=span.start
        )
        if copy is not None:
            self._skip_to(running, span.start)
        return copy

    def _prefilled(self, span: _Span, running: Running, copy: PageCopy | None) -> Chunk:
        """Give a chunk its pages, and count it as done."""
        is_covered = running.shard.cover(running.table, start=span.start, end=span.end)
        assert is_covered, "pages for the whole prompt are promised"
        is_final = span.end == running.num_to_prefill
        chunk = Chunk(
            slot=running.slot,
            request=running.request,
            start=span.start,
            tokens=tuple(running.tokens[span.start : span.end]),
            next_token=None if is_final else running.tokens[span.end],
            pages=running.table.snapshot(),
            shard=running.shard.shard,
            num_cached=running.num_cached,
            copy=copy,
            feature_rows=self._feature_rows(running, span),
        )
        running.num_prefilled = span.end
        running.num_dispatched += chunk.samples
        if is_final:
            self._let_go_of_features(running)
        return chunk

    def _publish(self, running: Running) -> None:
        """Let others find what a prompt has written, in dispatches after this one."""
        running.publish()
        if running.is_prefilled and self._shares_parts(running):
            assert running.keys is not None
            end = running.num_to_prefill - 1
            running.shard.publish_part(running.table, running.keys.of_part(end), end=end)

    def _feature_rows(self, running: Running, span: _Span) -> tuple[int, ...]:
        request = running.request
        if not request.images:
            return ()
        assert running.kind == "prefill", f"{request.id}: only prefill programs take images"
        placed = [-1] * running.num_to_prefill
        for image in request.images:
            placed[image.start : image.start + image.num_tokens] = self.features.rows_of(image)
        return tuple(placed[span.start : span.end])

    def _next_chunks(self) -> list[tuple[_Span, Running]]:
        """Return the next chunk of the oldest unfinished prompt, and other chunks of the same bucket."""
        chunks: list[tuple[_Span, Running]] = []
        bucket = 0
        for span, running in self._due_chunks():
            kind = running.kind
            shape = self._prefill_shape([span], kind)
            if chunks and (kind == "score" or (kind, shape.length) != (chunks[0][1].kind, bucket)):
                continue
            bucket = shape.length
            chunks.append((span, running))
            if kind == "score" or len(chunks) == self._max_batch:
                break
        # A longer program would pad every chunk beyond its own bucket and cost more than separate dispatches.
        while len(chunks) > 1 and not self._has_program(chunks[0][1].kind, rows=len(chunks), length=bucket):
            chunks.pop()
        return chunks

    def _due_chunks(self) -> Iterator[tuple[_Span, Running]]:
        """Yield the next chunk of every prompt that does not wait for pages of another, oldest first."""
        awaited: dict[int, set[bytes]] = {shard.shard: set() for shard in self._pages}
        for running in self._running.values():
            if running.is_prefilled or not self._sees_images(running):
                continue
            span = self._next_span(running, awaited[running.shard.shard])
            if span is not None:
                yield span, running

    def _next_span(self, running: Running, awaited: set[bytes]) -> _Span | None:
        """Return the next chunk of one prompt, after looking for pages of others; None to wait for some.

        Args:
            awaited: keys of the pages that older prompts are about to write; this prompt's own are added.
        """
        if running.finds_pages:
            assert running.keys is not None
            size, end = running.shard.page_size, running.num_to_prefill - 1
            part = running.keys.of_part(end) if self._shares_parts(running) else None
            if running.num_prefilled % size == 0:
                self._find_more(running)
                place = running.num_prefilled // size
                is_last_page = place == end // size
                if is_last_page and part is not None and running.shard.has(part):
                    return _Span(end, running.num_to_prefill, part)
                waits_for = part if is_last_page else running.keys.of_page(place)
                if waits_for in awaited:
                    return None
            awaited.update(
                running.keys.of_page(place) for place in range(running.num_prefilled // size, end // size)
            )
            if part is not None:
                awaited.add(part)
        return _Span(running.num_prefilled, self._chunk_end(running, running.num_prefilled))

    def _find_more(self, running: Running) -> None:
        """Let a prompt skip the pages of others that have been written since it began."""
        assert running.keys is not None
        place = running.num_prefilled // running.shard.page_size
        num_found = self._find(
            running.shard, running.keys, running.request, running.num_to_prefill, first=place
        )
        if num_found > place:
            self._begin_with(running, num_found)

    def _shares_parts(self, running: Running) -> bool:
        """Return whether equal prompts may copy the page before the last token of this one."""
        end = running.num_to_prefill - 1
        return (
            running.finds_pages and end % running.shard.page_size != 0 and self._is_edge(running.request, end)
        )

    def _chunk_end(self, running: Running, start: int) -> int:
        """Return the end of the chunk that begins at `start`."""
        plan = self._chunk_plans.get(running.kind)
        assert plan is not None, f"{running.request.id} needs a {running.kind} program; the bundle has none"
        end = start + plan.next_length(running.num_to_prefill - start)
        return keep_whole(start, end, self._whole_blocks(running.request))

    def _has_program(self, kind: ProgramKind, *, rows: int, length: int) -> bool:
        return any(
            shape.kind == kind and shape.rows >= rows and shape.length == length for shape in self._shapes
        )

    def _prefill_shape(self, spans: Sequence[_Span], kind: ProgramKind) -> ProgramShape:
        return choose_program(
            self._shapes, kind, rows=len(spans), length=max(span.end - span.start for span in spans)
        )

    def _plan_decode(self, unmasked: set[int], unread: set[str]) -> Decode | None:
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
        rows = self._with_pages(rows, step_limit, unread)
        if not rows:
            return None
        shape = choose_program(self._shapes, "decode", rows=len(rows), length=step_limit)
        for running in rows:
            running.num_dispatched += min(step_limit, running.num_left)
        return Decode(
            shape,
            tuple(running.slot for running in rows),
            tuple(running.request for running in rows),
            tuple(running.table.snapshot() for running in rows),
            step_limit,
        )

    def _with_pages(self, rows: list[Running], step_limit: int, unread: set[str]) -> list[Running]:
        """Give each row pages for its next steps, oldest first; return those that have them.

        Where there are too few, others give theirs back.

        Args:
            unread: requests that are prefilled in this step. They keep their pages until the next one,
                because the token of a prefill is not read before that is scheduled.
        """
        decoding = sorted(rows, key=lambda running: (running.request.priority, running.arrival))
        covered: list[Running] = []
        while decoding:
            running = decoding.pop(0)
            end = running.max_kv_len + min(step_limit, running.num_left)
            while not running.shard.cover(running.table, start=running.max_kv_len, end=end):
                candidates = [
                    other for other in (*covered, *decoding, running) if other.shard is running.shard
                ]
                victim = self._victim(candidates)
                if candidates == [running] or victim.request.id in unread:
                    # Prompts and finished answers hold the rest, and will be done with it; or the next step
                    # takes the pages.
                    break
                self._preempt(victim)
                covered, decoding = ([r for r in group if r is not victim] for group in (covered, decoding))
                if victim is running:
                    break
            else:
                covered.append(running)
        by_id = {running.request.id for running in covered}
        return [running for running in rows if running.request.id in by_id]

    def _victim(self, candidates: Sequence[Running]) -> Running:
        """Return the youngest request of the tenant that holds the most pages."""
        held: dict[str, int] = {}
        for running in self._running.values():
            held[running.request.tenant] = held.get(running.request.tenant, 0) + running.table.num_held
        return max(
            candidates,
            key=lambda running: (
                held[running.request.tenant],
                running.request.priority,
                running.arrival,
            ),
        )

    def _preempt(self, running: Running) -> None:
        """Take a request's pages; it waits with the tokens that it has, and with those not yet read."""
        self.num_preemptions += 1
        self._leave(running)
        outputs = tuple(running.tokens[len(running.request.prompt_ids) :])
        self._wait(_Waiting(running.request, running.arrival, outputs))

    def check_integrity(self) -> None:
        """Raise AssertionError if slots or pages were lost, shared or counted wrongly."""
        used = [running.slot for running in self._running.values()]
        assert sorted(used + self._free) == list(range(self._num_slots)), (used, self._free)
        for running in self._running.values():
            assert running.shard is self._pages[running.slot // self._slots_per_shard]
            assert 0 <= running.num_prefilled <= running.num_to_prefill
            assert len(running.outputs) <= running.num_dispatched <= running.request.params.max_tokens
            assert running.num_dispatched == len(running.outputs) or running.is_prefilled
            num_places = len(running.table.pages[0])
            assert num_places * running.shard.page_size >= running.max_kv_len
            assert not (running.holds_features and running.is_prefilled)
        assert not {waiting.request.id for _, _, waiting in self._waiting} & set(self._running)
        self.features.check_integrity()
        for shard in self._pages:
            shard.check_integrity()
