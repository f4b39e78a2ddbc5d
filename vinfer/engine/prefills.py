"""Plans prefill dispatches: which chunks of which prompts, with which pages and features.

Pure Python beside the scheduler, engine thread. It counts a chunk as done when it plans it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

from vinfer.bundle.program_table import ProgramTable
from vinfer.bundle.programs import ProgramKind, ProgramShape
from vinfer.engine.chunks import ChunkPlan, keep_whole
from vinfer.engine.feature_cache import FeatureCache
from vinfer.engine.kv_cache.pages import PageCopy
from vinfer.engine.prefixes import Prefixes
from vinfer.engine.running import Running
from vinfer.engine.schedule import Chunk, Prefill

_PROMPT_KINDS: tuple[ProgramKind, ...] = ("prefill", "score", "embed")
# Positions whose keys and values a token reads in the time of a padded token, with SmolLM2 on a CPU.
_READ_PER_TOKEN = 1000
# Prompts that share a dispatch end together, so the first of them waits for the last: that must pay.
_MIN_GAIN = 1.1


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """Positions of one dispatch, from `start` to `end`, and the key of the partial page to copy before it."""

    start: int
    end: int
    copied_part: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class _Work:
    """One dispatch that could be next: a program, and what it does of each prompt."""

    shape: ProgramShape
    spans: tuple[tuple[_Span, Running], ...]

    def cost(self) -> int:
        """Return the padded tokens, with what attention reads counted as some."""
        num_read = sum((span.end - span.start) * (span.start + span.end) // 2 for span, _ in self.spans)
        return self.shape.rows * self.shape.length + num_read // _READ_PER_TOKEN

    def tokens_per_cost(self, dispatch_cost_tokens: int) -> float:
        """Return prompt tokens per padded token, with the other costs of a dispatch counted as some."""
        num_tokens = sum(span.end - span.start for span, _ in self.spans)
        return num_tokens / (self.cost() + dispatch_cost_tokens)


class PrefillPlanner:
    """The prefill dispatches of one model; see `Scheduler` for the policy.

    Args:
        programs: the compiled programs.
        prefixes: which pages of others a prompt begins with.
        features: the feature array.
        dispatch_cost_tokens: see `ChunkPlan`.
        min_prefill_tokens: lower limit of the cost of dispatches between two decode dispatches, in tokens.
        splits_prompts: whether a prompt may take several rows of a dispatch.
    """

    def __init__(
        self,
        programs: ProgramTable,
        *,
        prefixes: Prefixes,
        features: FeatureCache,
        dispatch_cost_tokens: int | None,
        min_prefill_tokens: int,
        splits_prompts: bool,
    ) -> None:
        self._programs = programs
        self._prefixes = prefixes
        self._features = features
        self._chunk_plans = {
            kind: ChunkPlan(lengths, dispatch_cost_tokens)
            for kind in _PROMPT_KINDS
            if (lengths := programs.lengths(kind))
        }
        self._max_batch = programs.max_rows("prefill")
        of_rows = [shape for shape in programs.of_kind("prefill") if shape.rows > 1]
        self._of_rows = of_rows if splits_prompts else []
        self._longest = max(programs.lengths("prefill"))
        self._dispatch_cost_tokens = self._longest if dispatch_cost_tokens is None else dispatch_cost_tokens
        self._max_prefill_tokens = max(min_prefill_tokens, self._longest)

    def plan(self, requests: Collection[Running], *, max_tokens: int | None = None) -> tuple[Prefill, ...]:
        """Return the prefills before the next decode dispatch, and count them as done.

        Args:
            requests: those with slots; the first ones are prefilled first.
            max_tokens: most cost in tokens if that is less than `max_prefill_tokens`; one dispatch may have
                more.
        """
        prefills: list[Prefill] = []
        budget = min(self._max_prefill_tokens, max_tokens or self._max_prefill_tokens)
        while budget > 0:
            work = self._next_work(requests, budget)
            if work is None:
                break
            if prefills and work.cost() > budget:
                break
            budget -= work.cost()
            # All copies come first, as on the device: a chunk may write over a page that was copied.
            copies = [self._copy_part(*each) for each in work.spans]
            prefilled = [
                chunk
                for (span, running), copy in zip(work.spans, copies, strict=True)
                # A page without owners may have become that of another copy. Then the prompt waits.
                if copy is not None or span.copied_part is None
                for chunk in self._prefilled(span, running, copy, work.shape.length)
            ]
            assert prefilled, "pages for the whole prompt are promised"
            for _, running in work.spans:
                # Only now: a page that is replaced by its like may not go to another chunk of the dispatch.
                self._publish(running)
            prefills.append(Prefill(work.shape, tuple(prefilled)))
        return tuple(prefills)

    def _copy_part(self, span: _Span, running: Running) -> PageCopy | None:
        """Copy the partial page before a span, if it has one that is still there."""
        if span.copied_part is None:
            return None
        copy = running.shard.copy_part(
            running.table, span.copied_part, start=running.num_prefilled, end=span.start
        )
        if copy is not None:
            self._prefixes.skip_to(running, span.start)
        return copy

    def _prefilled(
        self, span: _Span, running: Running, copy: PageCopy | None, max_length: int
    ) -> list[Chunk]:
        """Give a span its pages, and count it as done; return it as chunks of one row each."""
        is_covered = running.shard.cover(running.table, start=span.start, end=span.end)
        assert is_covered, "pages for the whole prompt are promised"
        pages = running.table.snapshot()
        chunks = []
        for start in range(span.start, span.end, max_length):
            end = min(start + max_length, span.end)
            is_final = end == running.num_to_prefill
            chunks.append(
                Chunk(
                    slot=running.slot,
                    request=running.request,
                    start=start,
                    tokens=tuple(running.tokens[start:end]),
                    next_token=None if is_final else running.tokens[end],
                    pages=pages,
                    shard=running.shard.shard,
                    num_cached=running.num_cached,
                    copy=copy if start == span.start else None,
                    feature_rows=self._feature_rows(running, start, end),
                )
            )
        running.num_prefilled = span.end
        running.num_dispatched += chunks[-1].samples
        if running.is_prefilled:
            running.let_go_of_features(self._features)
        return chunks

    def _publish(self, running: Running) -> None:
        """Let others find what a prompt has written, in dispatches after this one."""
        running.publish()
        if running.is_prefilled and self._prefixes.shares_parts(running):
            assert running.keys is not None
            end = running.num_to_prefill - 1
            running.shard.publish_part(running.table, running.keys.of_part(end), end=end)

    def _feature_rows(self, running: Running, start: int, end: int) -> tuple[int, ...]:
        request = running.request
        if not request.images:
            return ()
        assert running.kind == "prefill", f"{request.id}: only prefill programs take images"
        placed = [-1] * running.num_to_prefill
        for image in request.images:
            placed[image.start : image.start + image.num_tokens] = self._features.rows_of(image)
        return tuple(placed[start:end])

    def _next_work(self, requests: Collection[Running], budget: int) -> _Work | None:
        """Return the dispatch that does most for its cost; None if no prompt is due."""
        # Of many waiting prompts, only those that the dispatch may take are looked at.
        due, *for_rows = itertools.tee(self.due_chunks(requests), 1 + len(self._of_rows))
        chunks = self._next_chunks(due)
        if not chunks:
            return None
        shape = self._prefill_shape([chunk for chunk, _ in chunks], chunks[0][1].kind)
        usual = _Work(shape, tuple(chunks))
        if not self._takes_rows(chunks[0][1]):
            return usual
        in_rows = (
            _Work(shape, self._fill_rows(of_shape, shape))
            for shape, of_shape in zip(self._of_rows, for_rows, strict=True)
        )
        best = max((work for work in in_rows if work.cost() <= budget), key=self._gain, default=usual)
        least = self._gain(usual) * (_MIN_GAIN if len(best.spans) > 1 else 1)
        return best if self._gain(best) > least else usual

    def _gain(self, work: _Work) -> float:
        return work.tokens_per_cost(self._dispatch_cost_tokens)

    def _takes_rows(self, running: Running) -> bool:
        """Return whether a prompt may take several rows of a dispatch."""
        # An image may have to lie in one row.
        return running.kind == "prefill" and not running.request.images

    def _fill_rows(
        self, due: Iterable[tuple[_Span, Running]], shape: ProgramShape
    ) -> tuple[tuple[_Span, Running], ...]:
        """Fill the rows of a program with prompts in order, each with as many rows as it needs.

        A row sees what the rows before it write: each layer writes all rows before any of them attends.
        """
        rows_left = shape.rows
        spans: list[tuple[_Span, Running]] = []
        for span, running in due:
            if not self._takes_rows(running):
                continue
            if span.copied_part is None:
                num_tokens = rows_left * shape.length
                if running.shard.has_windows:
                    # There are pages for a window and one chunk.
                    num_tokens = min(num_tokens, self._longest)
                span = _Span(span.start, min(span.start + num_tokens, running.num_to_prefill))
            spans.append((span, running))
            rows_left -= -(-(span.end - span.start) // shape.length)
            if not rows_left:
                break
        return tuple(spans)

    def _next_chunks(self, due: Iterable[tuple[_Span, Running]]) -> list[tuple[_Span, Running]]:
        """Return the next chunk of the oldest unfinished prompt, and other chunks of the same bucket."""
        chunks: list[tuple[_Span, Running]] = []
        bucket = 0
        for span, running in due:
            kind = running.kind
            shape = self._prefill_shape([span], kind)
            if chunks and (kind == "score" or (kind, shape.length) != (chunks[0][1].kind, bucket)):
                continue
            bucket = shape.length
            chunks.append((span, running))
            if kind == "score" or len(chunks) == self._max_batch:
                break
        # A longer program would pad every chunk beyond its own bucket and cost more than separate dispatches.
        while len(chunks) > 1 and not self._programs.has(chunks[0][1].kind, rows=len(chunks), length=bucket):
            chunks.pop()
        return chunks

    def due_chunks(self, requests: Collection[Running]) -> Iterator[tuple[_Span, Running]]:
        """Yield the next chunk of every prompt that does not wait for pages of another, oldest first."""
        awaited: defaultdict[int, set[bytes]] = defaultdict(set)
        for running in requests:
            if running.is_prefilled or not self._sees_images(running):
                continue
            span = self._next_span(running, awaited[running.shard.shard])
            if span is not None:
                yield span, running

    def _sees_images(self, running: Running) -> bool:
        """Return whether every image of a prompt is encoded before the work being planned."""
        images = running.request.images
        return not images or (running.holds_features and self._features.are_encoded(images))

    def _next_span(self, running: Running, awaited: set[bytes]) -> _Span | None:
        """Return the next chunk of one prompt, after looking for pages of others; None to wait for some.

        Args:
            awaited: keys of the pages that older prompts are about to write; this prompt's own are added.
        """
        if running.finds_pages:
            assert running.keys is not None
            size, end = running.shard.page_size, running.num_to_prefill - 1
            part = running.keys.of_part(end) if self._prefixes.shares_parts(running) else None
            if running.num_prefilled % size == 0:
                self._prefixes.find_more(running)
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

    def _chunk_end(self, running: Running, start: int) -> int:
        """Return the end of the chunk that begins at `start`."""
        plan = self._chunk_plans.get(running.kind)
        assert plan is not None, f"{running.request.id} needs a {running.kind} program; the bundle has none"
        end = start + plan.next_length(running.num_to_prefill - start)
        return keep_whole(start, end, self._prefixes.whole_blocks(running.request))

    def _prefill_shape(self, spans: Sequence[_Span], kind: ProgramKind) -> ProgramShape:
        return self._programs.choose(
            kind, rows=len(spans), length=max(span.end - span.start for span in spans)
        )
