"""Random requests, cancellations and ends, executed by a device that checks every dispatch.

The device works in order, as a real one does: a dispatch takes effect when it is enqueued, and its tokens are
read later. It knows whose prompt or answer is in each row of the cache.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Sequence
from typing import Literal

from engine_requests import (
    IMAGE_LENS,
    MAX_MODEL_LEN,
    STEPS,
    CountingMatcher,
    make_max_features,
    make_request,
    make_shapes,
)
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vinfer.bundle.manifest import Pooling
from vinfer.bundle.programs import ProgramShape
from vinfer.engine.schedule import Admission, Chunk, Decode, Encode, Prefill, Schedule
from vinfer.engine.scheduler import Scheduler

NUM_FEATURE_ROWS = MAX_MODEL_LEN
"""The lowest number allowed."""

Read = list[tuple[str, int, bool]]
"""For one dispatch: request, number of new tokens, whether the request ended."""

SHARED_LENS = {"a": 3, "b": 9, "c": 17, "d": 40}
"""Prompts shared by several requests, by key; the first is too short to be worth a copy."""

SHARED_IMAGES: dict[str, tuple[tuple[int, str], ...]] = {"c": ((2, "q"),), "d": ((0, "s"), (37, "p"))}
"""The images in these prompts; the last image of "d" ends its prompt."""


@dataclasses.dataclass
class Slot:
    owner: str
    prompt: str
    """The key of its prompt, or the request's own name."""
    prompt_len: int
    num_left: int
    """Tokens until the device ends the request, by length or by a stop token."""
    num_rows: int = 0
    is_active: bool = False
    has_grammar: bool = False


class CheckingDevice:
    """Executes dispatches and asserts that each one is valid in the current state of the device.

    Args:
        lives: tokens after which each request ends on the device, by request id.
        max_features: for every image encoder, the most features of one image.
    """

    def __init__(
        self,
        num_slots: int,
        lives: dict[str, int],
        max_features: dict[ProgramShape, int],
        *,
        keeps_images_whole: bool,
    ) -> None:
        self._max_features = max_features
        self._keeps_images_whole = keeps_images_whole
        self._num_slots = num_slots
        self._lives = lives
        self._slots: dict[int, Slot] = {}
        self._rows = {slot: [""] * MAX_MODEL_LEN for slot in range(num_slots)}
        self._features: dict[int, tuple[str, int]] = {}
        """For each row of the feature array, the image and the index of its feature."""
        self.num_copies = 0
        self.num_encoded = 0
        self.num_unread: Counter[str] = Counter()
        """Dispatches whose tokens of a request are unread."""

    def carry_out(self, schedule: Schedule) -> list[Read]:
        for admission in schedule.admissions:
            self._set_slot(admission)
        if schedule.encode is not None:
            self._encode(schedule.encode)
        reads = [self._prefill(prefill) for prefill in schedule.prefills]
        if schedule.decode is not None:
            reads.append(self._decode(schedule.decode))
        return reads

    def _set_slot(self, admission: Admission) -> None:
        assert 0 <= admission.slot < self._num_slots
        request = admission.request
        self._slots[admission.slot] = Slot(
            request.id,
            request.prompt_key or request.id,
            len(request.prompt_ids),
            self._lives[request.id],
            has_grammar=request.grammar is not None,
        )

    def _encode(self, encode: Encode) -> None:
        assert encode.shape.kind == "encode_images"
        assert 1 <= len(encode.images) == len(encode.rows) <= encode.shape.rows
        for image, rows in zip(encode.images, encode.rows, strict=True):
            assert len(set(rows)) == len(rows) == image.num_tokens <= self._max_features[encode.shape]
            assert all(0 <= row < NUM_FEATURE_ROWS for row in rows)
            self._features |= {row: (image.content_hash, place) for place, row in enumerate(rows)}
            self.num_encoded += 1

    def _check_features(self, chunk: Chunk) -> None:
        """Assert that every placeholder of a chunk finds its own feature, and no other token finds one."""
        expected = {
            image.start + place: (image.content_hash, place)
            for image in chunk.request.images
            for place in range(image.num_tokens)
        }
        assert len(chunk.feature_rows) == (chunk.length if chunk.request.images else 0)
        for place, row in enumerate(chunk.feature_rows, chunk.start):
            assert (None if row < 0 else self._features[row]) == expected.get(place)
        if self._keeps_images_whole:
            for image in chunk.request.images:
                inside = range(image.start + 1, image.start + image.num_tokens)
                assert chunk.start not in inside
                assert chunk.start + chunk.length not in inside

    def _copy(self, chunk: Chunk) -> None:
        assert chunk.copied_from is not None
        slot = self._slots[chunk.slot]
        assert (slot.num_rows, chunk.length) == (0, 1)
        assert chunk.is_final
        assert not chunk.request.scores_prompt
        assert chunk.request.pooling is None
        self._rows[chunk.slot][: chunk.start] = self._rows[chunk.copied_from][: chunk.start]
        slot.num_rows = chunk.start
        self.num_copies += 1

    def _prefill(self, prefill: Prefill) -> Read:
        shape = prefill.shape
        assert 1 <= len(prefill.chunks) <= shape.rows
        assert len({chunk.slot for chunk in prefill.chunks}) == len(prefill.chunks)
        read: Read = []
        for chunk in prefill.chunks:
            assert chunk.request.scores_prompt == (shape.kind == "score")
            assert (chunk.request.pooling is not None) == (shape.kind == "embed")
            if chunk.copied_from is not None:
                self._copy(chunk)
        for chunk in prefill.chunks:
            slot = self._slots[chunk.slot]
            assert slot.owner == chunk.request.id
            assert set(self._rows[chunk.slot][: chunk.start]) <= {slot.prompt}
            assert slot.num_rows == chunk.start
            assert 1 <= chunk.length <= shape.length
            self._check_features(chunk)
            slot.num_rows += chunk.length
            self._rows[chunk.slot][chunk.start : slot.num_rows] = [slot.prompt] * chunk.length
            assert slot.num_rows <= min(slot.prompt_len, shape.kv_length)
            assert chunk.is_final == (slot.num_rows == slot.prompt_len)
            assert chunk.samples == (chunk.is_final and slot.num_left > 0)
            if chunk.is_final:
                slot.num_left -= chunk.samples
                slot.is_active = slot.num_left > 0
                read.append((slot.owner, int(chunk.samples), not slot.is_active))
                self.num_unread[slot.owner] += 1
        return read

    def _decode(self, decode: Decode) -> Read:
        assert decode.shape.kind == "decode"
        assert 1 <= len(decode.slots) <= decode.shape.rows
        assert len(set(decode.slots)) == len(decode.slots) == len(decode.owners)
        assert 1 <= decode.step_limit <= decode.shape.length
        read: Read = []
        for place, owner in zip(decode.slots, decode.owners, strict=True):
            slot = self._slots[place]
            assert slot.owner == owner.id
            assert slot.num_rows >= slot.prompt_len
            if slot.has_grammar:
                # The mask is for one token and depends on the token before it.
                assert decode.step_limit == 1
                assert not self.num_unread[owner.id]
            num_steps = min(decode.step_limit, slot.num_left) if slot.is_active else 0
            answer = [f"answer of {owner.id}"] * num_steps
            self._rows[place][slot.num_rows : slot.num_rows + num_steps] = answer
            slot.num_rows += num_steps
            slot.num_left -= num_steps
            assert slot.num_rows <= decode.shape.kv_length
            if num_steps:
                slot.is_active = slot.num_left > 0
                read.append((owner.id, num_steps, not slot.is_active))
                self.num_unread[owner.id] += 1
        return read


class SchedulerSequences(RuleBasedStateMachine):
    @initialize(
        num_slots=st.sampled_from((1, 2, 3, 5)),
        prefill_shapes=st.sampled_from(
            (((1, 8),), ((1, 4), (1, 8)), ((1, 4), (1, 8), (2, 4)), ((2, 8), (4, 4)), ((1, 16), (3, 8)))
        ),
        dispatch_cost_tokens=st.sampled_from((None, 0, 3)),
        encoders=st.sampled_from(((1,), (1, 3), (2,))),
        several_at_most=st.sampled_from((5, 16, 30)),
        keeps_images_whole=st.booleans(),
    )
    def start(
        self,
        num_slots: int,
        prefill_shapes: tuple[tuple[int, int], ...],
        dispatch_cost_tokens: int | None,
        encoders: tuple[int, ...],
        several_at_most: int,
        keeps_images_whole: bool,
    ) -> None:
        shapes = make_shapes(prefill_shapes, num_slots, encoders)
        max_features = make_max_features(shapes, several_at_most)
        self.largest_bucket = max(shape.length for shape in shapes if shape.kind == "prefill")
        # The images of shared prompts must fit.
        self.keeps_images_whole = keeps_images_whole and self.largest_bucket >= IMAGE_LENS["s"]
        self.scheduler = Scheduler(
            shapes=shapes,
            num_slots=num_slots,
            steps=STEPS,
            dispatch_cost_tokens=dispatch_cost_tokens,
            num_feature_rows=NUM_FEATURE_ROWS,
            max_features=max_features,
            keeps_images_whole=self.keeps_images_whole,
        )
        self.lives: dict[str, int] = {}
        self.max_tokens: dict[str, int] = {}
        self.num_tokens: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.finished: list[str] = []
        self.device = CheckingDevice(
            num_slots, self.lives, max_features, keeps_images_whole=self.keeps_images_whole
        )
        self.in_flight: deque[Read] = deque()

    @property
    def unfinished(self) -> list[str]:
        return [name for name in self.lives if name not in self.cancelled and name not in self.finished]

    @rule(
        prompt=st.one_of(st.integers(1, 40), st.sampled_from(sorted(SHARED_LENS))),
        max_tokens=st.integers(0, 20),
        stops_after=st.one_of(st.none(), st.integers(1, 20)),
        purpose=st.sampled_from((None, None, None, "score", "mean", "last")),
        has_grammar=st.booleans(),
        priority=st.integers(-1, 1),
        image_names=st.lists(st.sampled_from(sorted(IMAGE_LENS)), max_size=3),
    )
    def submit(
        self,
        prompt: int | str,
        max_tokens: int,
        stops_after: int | None,
        purpose: Literal["score"] | Pooling | None,
        has_grammar: bool,
        priority: int = 0,
        image_names: Sequence[str] = (),
    ) -> None:
        name = f"request-{len(self.lives)}"
        key = prompt if isinstance(prompt, str) else None
        prompt_len = SHARED_LENS[prompt] if isinstance(prompt, str) else prompt
        images = list(SHARED_IMAGES.get(prompt, ())) if isinstance(prompt, str) else []
        if key is None:
            for image_name in image_names:
                start = images[-1][0] + IMAGE_LENS[images[-1][1]] + 1 if images else 0
                fits = not self.keeps_images_whole or IMAGE_LENS[image_name] <= self.largest_bucket
                if fits and start + IMAGE_LENS[image_name] <= prompt_len:
                    images.append((start, image_name))
        if images:
            # Prompts with images are neither scored nor embedded.
            purpose = None
        pooling = None if purpose == "score" else purpose
        max_tokens = 0 if pooling else min(max_tokens, MAX_MODEL_LEN - prompt_len)
        self.lives[name] = min(max_tokens, stops_after or max_tokens)
        self.max_tokens[name] = max_tokens
        self.num_tokens[name] = 0
        self.scheduler.submit(
            make_request(
                name,
                prompt_len,
                max_tokens,
                key=key,
                scores_prompt=purpose == "score",
                pooling=pooling,
                grammar=CountingMatcher() if has_grammar and not pooling else None,
                priority=priority,
                images=images,
            )
        )

    @rule(
        prompt=st.sampled_from(sorted(SHARED_LENS)),
        n=st.integers(2, 7),
        max_tokens=st.integers(1, 9),
        has_grammar=st.booleans(),
    )
    def submit_choices(self, prompt: str, n: int, max_tokens: int, has_grammar: bool) -> None:
        for _ in range(n):
            self.submit(prompt, max_tokens, None, purpose=None, has_grammar=has_grammar)

    @precondition(lambda self: bool(self.unfinished))
    @rule(place=st.integers(0, 100))
    def cancel(self, place: int) -> None:
        name = self.unfinished[place % len(self.unfinished)]
        self.cancelled.add(name)
        self.scheduler.finish(name)

    @rule()
    def step(self) -> None:
        while self.scheduler.is_constrained and self.in_flight:
            self.read()
        schedule = self.scheduler.schedule()
        num_padded = sum(prefill.shape.rows * prefill.shape.length for prefill in schedule.prefills)
        assert len(schedule.prefills) <= 1 or num_padded <= self.largest_bucket
        self.in_flight.extend(self.device.carry_out(schedule))

    @precondition(lambda self: bool(self.in_flight))
    @rule()
    def read(self) -> None:
        for name, num_tokens, is_last in self.in_flight.popleft():
            self.device.num_unread[name] -= 1
            self.num_tokens[name] += num_tokens
            assert self.num_tokens[name] <= self.max_tokens[name]
            if is_last and name not in self.cancelled:
                self.finished.append(name)
                self.scheduler.finish(name)

    @invariant()
    def slots_are_whole(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()

    def progress(self) -> tuple[object, ...]:
        """Return values that change whenever any request makes progress."""
        num_kv_rows = self.scheduler.num_kv_rows
        num_encoded = self.device.num_encoded
        return len(self.in_flight), dict(self.num_tokens), num_kv_rows, len(self.finished), num_encoded

    def teardown(self) -> None:
        """Check that every request that was not cancelled ends with all its tokens."""
        if not hasattr(self, "scheduler"):
            return
        while self.unfinished:
            before = self.progress()
            self.step()
            if self.in_flight:
                self.read()
            assert before != self.progress(), f"no progress; unfinished: {self.unfinished}"
        event(f"some prompt was copied: {self.device.num_copies > 0}")
        event(f"some image was encoded again: {self.device.num_encoded > len(IMAGE_LENS)}")
        for name in self.finished:
            assert self.num_tokens[name] == self.lives[name]
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0


TestSchedulerSequences = SchedulerSequences.TestCase
TestSchedulerSequences.settings = settings(max_examples=150, stateful_step_count=40)
