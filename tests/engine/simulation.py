"""The loop of `Engine` around a scheduler and a checking device, without threads: it reads tokens as late."""

from __future__ import annotations

import dataclasses
from collections import Counter

from checking_device import NUM_FEATURE_ROWS, CheckingDevice, Course, Read
from engine_requests import DRAFT_TOKENS, IMAGE_LENS, STEPS, make_max_features, make_pages, make_shapes

from vinfer.bundle.program_table import ProgramTable
from vinfer.engine.request import Request
from vinfer.engine.scheduler import Scheduler


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a simulation runs on.

    Attributes:
        num_slots: in all dp shards.
        spare_pages: pages of each shard beyond those of one request of full length.
        several_at_most: the largest image of which an encoder takes several.
        ngram: None for no drafts.
    """

    num_slots: int = 3
    dp: int = 1
    prefill_shapes: tuple[tuple[int, int], ...] = ((1, 4), (1, 8))
    page_size: int = 4
    spare_pages: int = 0
    windows: tuple[int | None, ...] = (None,)
    dispatch_cost_tokens: int | None = None
    min_prefill_tokens: int = 0
    encoders: tuple[int, ...] = (1,)
    several_at_most: int = 30
    keeps_images_whole: bool = False
    ngram: int | None = None


class Simulation:
    """Requests, cancellations and steps of the engine, with everything checked.

    Attributes:
        keeps_images_whole: false where some image exceeds the largest bucket.
    """

    def __init__(self, sizes: Sizes) -> None:
        shapes = make_shapes(sizes.prefill_shapes, sizes.num_slots, sizes.encoders)
        max_features = make_max_features(shapes, sizes.several_at_most)
        self.largest_bucket = max(shape.length for shape in shapes if shape.kind == "prefill")
        self._max_prefill_tokens = max(self.largest_bucket, sizes.min_prefill_tokens)
        self.keeps_images_whole = sizes.keeps_images_whole and self.largest_bucket >= IMAGE_LENS["s"]
        max_write_len = max(self.largest_bucket, STEPS, DRAFT_TOKENS + 1)
        (one_row, *_) = make_pages(
            sizes.dp,
            page_size=sizes.page_size,
            windows=sizes.windows,
            dp=sizes.dp,
            max_write_len=max_write_len,
        )
        self._shards = make_pages(
            sizes.num_slots,
            one_row.num_pages + sizes.spare_pages,
            page_size=sizes.page_size,
            windows=sizes.windows,
            dp=sizes.dp,
            max_write_len=max_write_len,
        )
        self.scheduler = Scheduler(
            programs=ProgramTable(shapes, max_features),
            num_slots=sizes.num_slots,
            pages=self._shards,
            dispatch_cost_tokens=sizes.dispatch_cost_tokens,
            min_prefill_tokens=sizes.min_prefill_tokens,
            num_feature_rows=NUM_FEATURE_ROWS,
            keeps_images_whole=self.keeps_images_whole,
            ngram=sizes.ngram,
        )
        self._courses: dict[str, Course] = {}
        self._tokens: dict[str, list[int]] = {}
        self._cancelled: set[str] = set()
        self._finished: set[str] = set()
        self._in_flight: list[Read] = []
        self._device = CheckingDevice(
            sizes.num_slots,
            self._courses,
            max_features,
            windows=sizes.windows,
            page_size=sizes.page_size,
            slots_per_shard=sizes.num_slots // sizes.dp,
            keeps_images_whole=self.keeps_images_whole,
        )

    @property
    def num_submitted(self) -> int:
        return len(self._courses)

    @property
    def unfinished(self) -> list[str]:
        return [name for name in self._courses if name not in self._cancelled | self._finished]

    @property
    def counts(self) -> Counter[str]:
        """What happened how often, in words."""
        return self._device.counts + Counter(preempted=self.scheduler.num_preemptions)

    def submit(self, request: Request, stops_after: int | None = None) -> None:
        """Submit a request that the device ends after some tokens, if not by its length."""
        max_tokens = request.params.max_tokens
        self._courses[request.id] = Course.of(request, min(max_tokens, stops_after or max_tokens))
        self._tokens[request.id] = []
        self.scheduler.submit(request)

    def cancel(self, name: str) -> None:
        self._cancelled.add(name)
        self.scheduler.finish(name)
        self.scheduler.check_integrity()

    def step(self) -> None:
        """Schedule and carry out; then read the dispatches before, or first if the schedule needs that."""
        if self.scheduler.needs_all_tokens:
            self._read_all()
        num_unread = len(self._in_flight)
        schedule = self.scheduler.schedule()
        assert schedule or num_unread or not self.scheduler.num_running, "the engine would fail"
        num_padded = sum(prefill.shape.rows * prefill.shape.length for prefill in schedule.prefills)
        assert len(schedule.prefills) <= 1 or num_padded <= self._max_prefill_tokens
        self.scheduler.check_integrity()
        enqueued = self._device.carry_out(schedule)
        self._read_all()
        self._in_flight = enqueued

    def _read_all(self) -> None:
        for dispatch in self._in_flight:
            for name, tokens, is_last, num_accepted in dispatch:
                self._device.num_unread[name] -= 1
                if name in self._cancelled:
                    continue
                self._tokens[name] += tokens
                self.scheduler.observe(name, tokens, num_accepted)
                if is_last:
                    self._finished.add(name)
                    self.scheduler.finish(name)
            self.scheduler.check_integrity()
        self._in_flight = []

    def run_to_the_end(self) -> None:
        """Check that every request that was not cancelled ends with exactly its tokens."""
        for _ in range(5000):
            if not self.unfinished:
                break
            before = self._progress()
            # What the first one enqueues is read in the second.
            self.step()
            self.step()
            assert before != self._progress(), f"no progress; unfinished: {self.unfinished}"
        self.step()
        assert not self._in_flight
        for name in self._finished:
            assert tuple(self._tokens[name]) == self._courses[name].answer, name
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        assert self.scheduler.kv_usage_fraction == 0
        assert all(shard.num_promisable() == shard.num_pages for shard in self._shards)
        self.scheduler.check_integrity()

    def _progress(self) -> tuple[object, ...]:
        """Return values that change whenever any request makes progress."""
        num_tokens = {name: len(tokens) for name, tokens in self._tokens.items()}
        return num_tokens, self._device.num_positions_written, len(self._finished), self.counts["encoded"]
