"""A device that asserts that every dispatch is valid, and that every row finds its own past in its pages.

It works in order, as a real one does: a dispatch takes effect when it is enqueued, and its tokens are read
later. Each position of a page holds the history that its keys and values depend on: all tokens and images up
to there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

from engine_requests import IMAGE_LENS, MAX_MODEL_LEN

from vinfer.bundle.programs import ProgramShape
from vinfer.engine.kv_cache.pages import NO_PAGE, PageCopy
from vinfer.engine.request import Request
from vinfer.engine.schedule import Admission, Chunk, Decode, Encode, Prefill, Schedule

NUM_FEATURE_ROWS = MAX_MODEL_LEN
"""The lowest number allowed."""

Read = list[tuple[str, tuple[int, ...], bool, int]]
"""For one dispatch: request, new tokens, whether the request ended, and how many tokens were in its draft."""


@dataclasses.dataclass(frozen=True)
class Course:
    """A request from its first token to its last, known in advance.

    Attributes:
        histories: for each position, a number that stands for all tokens and images up to it.
        answer: the tokens until the device ends it, by length or by a stop token.
    """

    request: Request
    tokens: tuple[int, ...]
    histories: tuple[int, ...]
    answer: tuple[int, ...]

    @classmethod
    def of(cls, request: Request, num_tokens: int) -> Course:
        """Work out a request whose every token is a function of its history."""
        features = {
            image.start + place: (sorted(IMAGE_LENS).index(image.content_hash), place)
            for image in request.images
            for place in range(image.num_tokens)
        }
        tokens, histories = list(request.prompt_ids), [0]
        for position in range(len(tokens) + num_tokens):
            if position == len(tokens):
                tokens.append(histories[-1] % 3)
            histories.append(hash((histories[-1], tokens[position], features.get(position, (-1, -1)))))
        answer = tuple(tokens[len(request.prompt_ids) :])
        return cls(request, tuple(tokens), tuple(histories[1:]), answer)


@dataclasses.dataclass
class _Slot:
    course: Course
    num_sampled: int
    """Tokens of the answer so far, and positions in pages."""
    num_positions: int = 0
    is_active: bool = False

    @property
    def name(self) -> str:
        return self.course.request.id

    @property
    def prefill_len(self) -> int:
        return len(self.course.request.prompt_ids) + self.num_sampled

    def sample(self) -> int:
        token = self.course.answer[self.num_sampled]
        self.num_sampled += 1
        self.is_active = self.num_sampled < len(self.course.answer)
        return token


class CheckingDevice:
    """Executes dispatches and asserts that each one is valid in the current state of the device.

    Args:
        courses: what becomes of each request, by its id.
        windows: by group of pages.
        max_features: for every image encoder, the most features of one image.
    """

    def __init__(
        self,
        num_slots: int,
        courses: dict[str, Course],
        max_features: dict[ProgramShape, int],
        *,
        windows: Sequence[int | None],
        page_size: int,
        slots_per_shard: int,
        keeps_images_whole: bool,
    ) -> None:
        self._max_features = max_features
        self._keeps_images_whole = keeps_images_whole
        self._num_slots = num_slots
        self._slots_per_shard = slots_per_shard
        self._windows = windows
        self._page_size = page_size
        self._courses = courses
        self._slots: dict[int, _Slot] = {}
        self._pages: dict[tuple[int, int, int], dict[int, tuple[int, str]]] = {}
        """By shard, group and page: for each offset, the history there and whom it may be shown to."""
        self._features: dict[int, tuple[str, int]] = {}
        """For each row of the feature array, the image and the index of its feature."""
        self._num_sampled: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        """What happened how often, in words."""
        self.num_positions_written = 0
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
        course = self._courses[admission.request.id]
        num_sampled = self._num_sampled[admission.request.id]
        # No token of its earlier slot is lost, or still on its way.
        assert admission.outputs == course.answer[:num_sampled]
        assert not self.num_unread[admission.request.id]
        self.counts["resumed"] += bool(admission.outputs)
        self._slots[admission.slot] = _Slot(course, num_sampled)

    def _encode(self, encode: Encode) -> None:
        assert encode.shape.kind == "encode_images"
        assert 1 <= len(encode.images) == len(encode.rows) <= encode.shape.rows
        for image, rows in zip(encode.images, encode.rows, strict=True):
            assert len(set(rows)) == len(rows) == image.num_tokens <= self._max_features[encode.shape]
            assert all(0 <= row < NUM_FEATURE_ROWS for row in rows)
            self._features |= {row: (image.content_hash, place) for place, row in enumerate(rows)}
            self.counts["encoded"] += 1

    def _prefill(self, prefill: Prefill) -> Read:
        shape = prefill.shape
        assert 1 <= len(prefill.chunks) <= shape.rows
        for before, chunk in itertools.pairwise(prefill.chunks):
            if any(chunk.slot == other.slot for other in prefill.chunks[: prefill.chunks.index(chunk)]):
                # One prompt in several rows.
                assert (before.slot, before.start + before.length) == (chunk.slot, chunk.start)
                assert chunk.copy is None
                assert shape.kind == "prefill"
                self.counts["several rows"] += 1
        for chunk in prefill.chunks:
            if chunk.copy is not None:
                self._copy(chunk, chunk.copy)
        for chunk in prefill.chunks:
            self._check_chunk(chunk, shape)
            slot = self._slots[chunk.slot]
            self._write(slot, chunk.shard, chunk.pages, chunk.start, chunk.start + chunk.length)
        read: Read = []
        for chunk in prefill.chunks:
            slot = self._slots[chunk.slot]
            # No other row of the dispatch has written there.
            self._check_past(slot, chunk.shard, chunk.pages, chunk.start, chunk.start + chunk.length)
            if chunk.is_final:
                tokens = (slot.sample(),) if chunk.samples else ()
                read.append((slot.name, tokens, not slot.is_active, 0))
                self._has_sampled(slot)
        return read

    def _check_chunk(self, chunk: Chunk, shape: ProgramShape) -> None:
        slot, request, end = self._slots[chunk.slot], chunk.request, chunk.start + chunk.length
        course = slot.course
        assert course.request is request
        is_resumed = slot.num_sampled > 0
        kind = "score" if request.scores_prompt else "prefill" if request.pooling is None else "embed"
        assert shape.kind == ("prefill" if is_resumed else kind)
        assert chunk.shard == chunk.slot // self._slots_per_shard
        assert 1 <= chunk.length <= shape.length
        assert chunk.tokens == course.tokens[chunk.start : end]
        assert chunk.next_token == (course.tokens[end] if end < slot.prefill_len else None)
        assert chunk.samples == (chunk.is_final and request.params.max_tokens > 0)
        self._check_features(chunk)
        num_skipped = chunk.start - slot.num_positions
        assert num_skipped >= 0
        if num_skipped:
            assert shape.kind == "prefill"
            assert request.cache_scope is not None
            self.counts["found after preemption" if is_resumed else "found"] += 1
        assert is_resumed or slot.num_positions or chunk.num_cached == chunk.start
        self._check_past(slot, chunk.shard, chunk.pages, chunk.start, chunk.start)
        assert not (is_resumed and request.grammar is not None and self.num_unread[request.id])

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

    def _decode(self, decode: Decode) -> Read:
        verifies = decode.shape.kind == "verify"
        assert verifies or decode.shape.kind == "decode"
        assert 1 <= len(decode.slots) <= decode.shape.rows
        assert len(set(decode.slots)) == len(decode.slots) == len(decode.owners) == len(decode.pages)
        assert 1 <= decode.step_limit <= (1 if verifies else decode.shape.length)
        assert len(decode.drafts) == (len(decode.slots) if verifies else 0)
        drafts = decode.drafts or ((),) * len(decode.slots)
        rows: list[tuple[_Slot, int, tuple[tuple[int, ...], ...], int, tuple[int, ...]]] = []
        for place, owner, pages, draft in zip(decode.slots, decode.owners, decode.pages, drafts, strict=True):
            slot, shard = self._slots[place], place // self._slots_per_shard
            assert slot.course.request is owner
            assert slot.num_positions >= len(owner.prompt_ids)
            if owner.grammar is not None:
                # A mask depends on all tokens before it; those after the tokens of a draft follow from it.
                assert decode.step_limit == 1
                assert not self.num_unread[owner.id]
            if draft:
                # It follows the newest token.
                assert not self.num_unread[owner.id]
                assert len(draft) < decode.shape.length
                assert slot.num_sampled + len(draft) < owner.params.max_tokens
            if slot.is_active:
                self._check_past(slot, shard, pages, slot.num_positions, slot.num_positions)
                rows.append((slot, shard, pages, slot.num_positions, draft))
        read: Read = []
        for slot, shard, pages, start, draft in rows:
            if verifies:
                tokens = self._verify(slot, shard, pages, draft)
                num_accepted = sum(token == guess for token, guess in zip(tokens, draft, strict=False))
            else:
                tokens, num_accepted = [], 0
                while slot.is_active and len(tokens) < decode.step_limit:
                    self._write(slot, shard, pages, slot.num_positions, slot.num_positions + 1)
                    tokens.append(slot.sample())
            read.append((slot.name, tuple(tokens), not slot.is_active, num_accepted))
            self._has_sampled(slot)
            self._check_past(slot, shard, pages, start, slot.num_positions)
        for slot, shard, pages, start, _ in rows:
            self._check_past(slot, shard, pages, start, slot.num_positions)
        return read

    def _verify(
        self, slot: _Slot, shard: int, pages: Sequence[Sequence[int]], draft: Sequence[int]
    ) -> list[int]:
        """Write the newest token and a draft, then sample until a token is not the draft's."""
        start = slot.num_positions
        self._spoil(shard, pages, start, start + 1 + len(draft))
        tokens: list[int] = []
        while slot.is_active and tokens == list(draft[: len(tokens)]) and len(tokens) <= len(draft):
            self._write(slot, shard, pages, slot.num_positions, slot.num_positions + 1)
            tokens.append(slot.sample())
        self.counts["drafted"] += bool(draft)
        self.counts["accepted in whole"] += bool(draft) and len(tokens) > len(draft)
        self.counts["rejected in part"] += bool(draft) and len(tokens) <= len(draft)
        return tokens

    def _spoil(self, shard: int, pages: Sequence[Sequence[int]], start: int, end: int) -> None:
        """Leave in some positions what nobody may see: the tokens of a draft, until they are right."""
        for group, table in enumerate(pages):
            for position in range(start, end):
                place, offset = divmod(position, self._page_size)
                self._pages.setdefault((shard, group, table[place]), {})[offset] = (0, "nobody")

    def _has_sampled(self, slot: _Slot) -> None:
        self._num_sampled[slot.name] = slot.num_sampled
        self.num_unread[slot.name] += 1

    def _copy(self, chunk: Chunk, copy: PageCopy) -> None:
        assert copy.shard == chunk.slot // self._slots_per_shard
        assert len(copy.sources) == len(copy.targets) == len(self._windows)
        for group, (source, target) in enumerate(zip(copy.sources, copy.targets, strict=True)):
            assert chunk.pages[group][chunk.start // self._page_size] == target
            self._pages[copy.shard, group, target] = dict(self._pages[copy.shard, group, source])
            self.counts["used in place" if source == target else "copied"] += 1

    def _write(self, slot: _Slot, shard: int, pages: Sequence[Sequence[int]], start: int, end: int) -> None:
        for group, table in enumerate(pages):
            for position in range(start, end):
                place, offset = divmod(position, self._page_size)
                page = self._pages.setdefault((shard, group, table[place]), {})
                page[offset] = (slot.course.histories[position], _audience(slot.course.request))
        self.num_positions_written += end - start
        slot.num_positions = end

    def _check_past(
        self, slot: _Slot, shard: int, pages: Sequence[Sequence[int]], start: int, end: int
    ) -> None:
        """Assert that what the tokens from `start` on see before `end` is the row's own past."""
        assert len(pages) == len(self._windows)
        audience = _audience(slot.course.request)
        for group, (window, table) in enumerate(zip(self._windows, pages, strict=True)):
            first = 0 if window is None else max(start - window + 1, 0)
            for position in range(first, end):
                place, offset = divmod(position, self._page_size)
                assert table[place] != NO_PAGE
                assert self._pages[shard, group, table[place]][offset] == (
                    slot.course.histories[position],
                    audience,
                )
            self.counts["passed by a window"] += table.count(NO_PAGE) > 0


def _audience(request: Request) -> str:
    """Return who may see a request's pages: nobody but itself without a scope."""
    return request.id if request.cache_scope is None else f"scope {request.cache_scope}"
