"""Decides which request gets which slot, and what the devices do next.

Pure Python: no text, no arrays, no clock, no thread of its own (the engine thread calls it). For each slot
it counts the most tokens that the device can have produced. The real end of a request is known later, when
its tokens are read.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from vinfer.bundle.program_table import ProgramTable
from vinfer.engine.feature_cache import FeatureCache
from vinfer.engine.kv_cache.pages import ShardPages, total_owned
from vinfer.engine.prefills import PrefillPlanner
from vinfer.engine.prefixes import Prefixes
from vinfer.engine.request import Request
from vinfer.engine.running import Running, by_turns
from vinfer.engine.schedule import Admission, Decode, Encode, Prefill, Schedule
from vinfer.engine.speculation.speculation import Speculation, steps_of
from vinfer.engine.waiting import Waiting, WaitingQueue


class Scheduler:
    """Continuous batching over slots.

    Policy: waiting requests take free slots by priority, lowest value first; tenants of equal priority take
    turns, and so do their prompts. A tenant has at most `max_running_per_tenant` slots. A running request
    keeps its slot. Between two decode dispatches there is one prefill dispatch, or several that cost at most
    `max_prefill_tokens` in total (the largest bucket): padded prompt tokens, and what attention reads. So a
    running request never waits longer than that. A decode dispatch runs a single step while any request is
    waiting or being prefilled, or while a running request is constrained.

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

    Where the newest tokens of requests stood before, what followed there is verified in one dispatch instead
    of decoded (`Speculation`). Until that is read, `num_dispatched` counts every token of a draft.

    Args:
        programs: the compiled programs.
        num_slots: rows of the batch.
        pages: of each dp shard; slots are divided among the shards in order.
        dispatch_cost_tokens: see `ChunkPlan`.
        min_prefill_tokens: lower limit of max_prefill_tokens, for configs with only short buckets.
        shared_prefill_tokens: upper limit of it while no tenant may have all slots: whoever comes next waits
            for one or two steps, so they must be short. None for none.
        num_feature_rows: rows of the feature array; 0 for a model without images.
        keeps_images_whole: every image lies in one chunk; none has more tokens than the largest bucket.
        ngram: see `Speculation`.
        keeps_slot_arrays: see `Manifest.keeps_slot_arrays`. Then no prompt begins with pages of others, and
            none takes several rows of a dispatch, which do not see each other's states.

    Attributes:
        max_running_per_tenant: may be changed between two steps.
    """

    def __init__(
        self,
        *,
        programs: ProgramTable,
        num_slots: int,
        pages: Sequence[ShardPages],
        dispatch_cost_tokens: int | None = None,
        min_prefill_tokens: int = 0,
        shared_prefill_tokens: int | None = None,
        num_feature_rows: int = 0,
        keeps_images_whole: bool = False,
        ngram: int | None = None,
        keeps_slot_arrays: bool = False,
    ) -> None:
        self._programs = programs
        self._is_single_shape = programs.is_single_shape
        self._num_slots = num_slots
        self.max_running_per_tenant = num_slots
        self._shared_prefill_tokens = shared_prefill_tokens
        self._pages = tuple(pages)
        self._slots_per_shard = num_slots // len(self._pages)
        self._free = list(range(num_slots))
        self._waiting = WaitingQueue()
        self._arrivals = itertools.count()
        self._running: dict[str, Running] = {}
        self._prefill_turns: dict[str, int] = {}
        self.num_preemptions = 0
        self.features = FeatureCache(num_feature_rows)
        self._has_just_encoded = False
        self.speculation = Speculation(programs, ngram=ngram)
        longest = max(programs.lengths("prefill"))
        self._prefixes = Prefixes(
            page_size=self._pages[0].page_size,
            chunk_len=longest if self._is_single_shape else None,
            keeps_images_whole=keeps_images_whole,
            can_find=not keeps_slot_arrays,
        )
        self._prefills = PrefillPlanner(
            programs,
            prefixes=self._prefixes,
            features=self.features,
            dispatch_cost_tokens=dispatch_cost_tokens,
            min_prefill_tokens=min_prefill_tokens,
            splits_prompts=not keeps_slot_arrays,
        )

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_free_slot(self) -> bool:
        return bool(self._free)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_prefix_queries(self) -> int:
        """Prompt tokens of requests that could have found pages."""
        return self._prefixes.num_queries

    @property
    def num_prefix_hits(self) -> int:
        """How many of these were found."""
        return self._prefixes.num_hits

    @property
    def needs_all_tokens(self) -> bool:
        """Whether all tokens must be read before `schedule`: of a constrained request, or for drafts."""
        return self._is_constrained or self.speculation.needs_all_tokens(self._running.values())

    @property
    def _is_constrained(self) -> bool:
        return any(running.request.grammar is not None for running in self._running.values())

    @property
    def kv_usage_fraction(self) -> float:
        """The part of all pages that requests hold."""
        num_owned, num_pages = total_owned(self._pages)
        return num_owned / num_pages

    @property
    def num_pages(self) -> int:
        """Pages of the KV cache, those of the first group, in all shards."""
        return sum(shard.num_pages for shard in self._pages)

    def submit(self, request: Request) -> None:
        """Put a request in the queue."""
        tokens = [*request.prompt_ids]
        keys = self._prefixes.keys(request, tokens)
        self._waiting.push(Waiting(request, next(self._arrivals), tokens, keys))

    def is_running(self, request_id: str) -> bool:
        return request_id in self._running

    def observe(self, request_id: str, token_ids: Sequence[int], num_accepted: int = 0) -> None:
        """Record tokens that were read from the device, in order; also those of one that waits again.

        Args:
            num_accepted: how many of them were in the request's draft.
        """
        running = self._running.get(request_id)
        if running is None:
            self._waiting.observe(request_id, token_ids)
            return
        running.tokens += token_ids
        if running.num_drafted:
            self.speculation.learn(running, num_accepted)
        if not self._is_single_shape:
            running.publish()

    def finish(self, request_id: str) -> None:
        """Free the slot and the pages of a request, or remove it from the queue; unknown ids are ignored.

        Both may be reused at once. The device works in order, so whatever an older dispatch still does
        to them happens before the new owner's work.
        """
        running = self._running.get(request_id)
        if running is not None:
            self._leave(running)
        else:
            self._waiting.remove(request_id)

    def _leave(self, running: Running) -> None:
        """Take a request's slot and pages away."""
        del self._running[running.request.id]
        heapq.heappush(self._free, running.slot)
        running.shard.close(running.table)
        running.let_go_of_features(self.features)
        self.speculation.end(running)

    def drop_all(self) -> list[str]:
        """Drop every request and return their ids."""
        ids = [*self._running, *self._waiting.ids]
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
        encode, prefills = self._plan_prompts() if self._has_prompts else (None, ())
        unread = {chunk.request.id for prefill in prefills for chunk in prefill.chunks}
        return Schedule(admissions, encode, prefills, self._plan_decode(unmasked, unread))

    @property
    def _has_prompts(self) -> bool:
        """Whether a running request has something to prefill: most steps only decode."""
        return not all(running.is_prefilled for running in self._running.values())

    def _plan_prompts(self) -> tuple[Encode | None, tuple[Prefill, ...]]:
        is_decoding = any(r.is_prefilled and r.num_left > 0 for r in self._running.values())
        encode = self._plan_encode(is_decoding=is_decoding)
        return encode, () if encode is not None and is_decoding else self._plan_prefills()

    def _admit(self) -> tuple[Admission, ...]:
        if not (self._waiting and self._free):
            return ()
        admissions = []
        num_running = Counter(running.request.tenant for running in self._running.values())
        while self._waiting and self._free:
            full = [tenant for tenant, num in num_running.items() if num >= self.max_running_per_tenant]
            waiting = self._waiting.first(without=full)
            running = None if waiting is None else self._place(waiting)
            if waiting is None or running is None:
                # Younger requests wait too, or a long prompt would wait for ever.
                break
            self._waiting.take(waiting)
            num_running[waiting.request.tenant] += 1
            self._free.remove(running.slot)
            heapq.heapify(self._free)
            self._running[running.request.id] = running
            admissions.append(Admission(running.slot, running.request, running.outputs))
        return tuple(admissions)

    def _place(self, waiting: Waiting) -> Running | None:
        """Choose a slot in the dp shard that has most of the prompt, then the most memory; None to wait."""
        request, tokens, keys = waiting.request, waiting.tokens, waiting.keys
        num_positions = len(tokens)
        if self._is_single_shape:
            num_positions += request.params.max_tokens
        best: tuple[tuple[int, int], int, ShardPages] | None = None
        lowest = {slot // self._slots_per_shard: slot for slot in sorted(self._free, reverse=True)}
        for place, slot in sorted(lowest.items()):
            shard = self._pages[place]
            num_found = 0 if keys is None else self._prefixes.find(shard, keys, request, len(tokens))
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
        self.speculation.begin(running)
        if running.finds_pages and not waiting.outputs:
            self._prefixes.num_queries += len(tokens)
        if keys is not None and num_found:
            self._prefixes.begin_with(running, num_found)
        return running

    def _plan_encode(self, *, is_decoding: bool) -> Encode | None:
        """Choose images for the encoder; the oldest prompts come first."""
        for running in self._running.values():
            if running.is_prefilled or running.holds_features or not running.request.images:
                continue
            if not self.features.pin(running.request.images):
                # Younger prompts wait too, or they would take the rows that the oldest waits for.
                break
            running.holds_features = True
        waiting = self.features.next_to_encode(self._programs.max_images)
        if not waiting:
            return None
        if (
            self._has_just_encoded
            and is_decoding
            and any(True for _ in self._prefills.due_chunks(self._running.values()))
        ):
            self._has_just_encoded = False
            return None
        self._has_just_encoded = True
        shape, num_taken = self._programs.choose_encoder([image.num_tokens for image in waiting])
        images = waiting[:num_taken]
        self.features.encoded(images)
        return Encode(shape, tuple(images), tuple(self.features.rows_of(image) for image in images))

    def _plan_prefills(self) -> tuple[Prefill, ...]:
        """Choose prompts to prefill; tenants take turns, so that none waits for all prompts of another."""
        is_shared = self.max_running_per_tenant < self._num_slots
        prefills = self._prefills.plan(
            by_turns(self._running.values(), self._prefill_turns),
            max_tokens=self._shared_prefill_tokens if is_shared else None,
        )
        turn = max(self._prefill_turns.values(), default=0) + 1
        tenants = {running.request.tenant for running in self._running.values()}
        self._prefill_turns = {t: n for t, n in self._prefill_turns.items() if t in tenants}
        for prefill in prefills:
            self._prefill_turns.update((chunk.request.tenant, turn) for chunk in prefill.chunks)
        return prefills

    def _plan_decode(self, unmasked: set[int], unread: set[str]) -> Decode | None:
        rows = [
            running
            for running in self._running.values()
            if running.is_prefilled and running.num_left > 0 and running.slot not in unmasked
        ]
        if not rows:
            return None
        drafts = self.speculation.drafts(rows)
        if drafts:
            step_limit, steps = 1, steps_of(rows, drafts)
        else:
            is_idle = not self._waiting and not self._has_prompts
            most = max(running.num_left for running in rows)
            step_limit = min(self._programs.steps if is_idle and not self._is_constrained else 1, most)
            steps = {running.request.id: min(step_limit, running.num_left) for running in rows}
        rows = self._with_pages(rows, steps, unread)
        if not rows:
            return None
        for running in rows:
            running.num_dispatched += steps[running.request.id]
            running.num_drafted = len(drafts.get(running.request.id, ()))
        return Decode(
            self._programs.choose("verify", rows=len(rows), length=max(steps.values()))
            if drafts
            else self._programs.choose("decode", rows=len(rows), length=step_limit),
            tuple(running.slot for running in rows),
            tuple(running.request for running in rows),
            tuple(running.table.snapshot() for running in rows),
            step_limit,
            tuple(drafts.get(running.request.id, ()) for running in rows) if drafts else (),
        )

    def _with_pages(self, rows: list[Running], steps: Mapping[str, int], unread: set[str]) -> list[Running]:
        """Give each row pages for its next steps, oldest first; return those that have them.

        Where there are too few, others give theirs back.

        Args:
            steps: for each request, the most tokens that it gains.
            unread: requests that are prefilled in this step. They keep their pages until the next one,
                because the token of a prefill is not read before that is scheduled.
        """
        decoding = sorted(rows, key=lambda running: (running.request.priority, running.arrival))
        covered: list[Running] = []
        while decoding:
            running = decoding.pop(0)
            end = running.max_kv_len + steps[running.request.id]
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
        if len(covered) == len(rows):
            return rows
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
        self._waiting.push(Waiting(running.request, running.arrival, running.tokens, running.keys))

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
        assert not set(self._waiting.ids) & set(self._running)
        self.features.check_integrity()
        for shard in self._pages:
            shard.check_integrity()
