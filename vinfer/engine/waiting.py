"""Requests without a slot, in the order in which they get one. Pure data of the scheduler."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Collection, Sequence

from vinfer.engine.kv_cache.prefix_keys import PrefixKeys
from vinfer.engine.request import Request

# Beyond this many tenants, those served longest ago are forgotten; they then count as never served.
MAX_REMEMBERED_TENANTS = 4096


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A request without a slot.

    Attributes:
        arrival: its number in the order of arrival.
        tokens: the prompt; then, if it gave its pages back, the tokens that it had, and those read since.
        keys: names its pages' contents, so that they are hashed once, however long it waits; None if it
            shares no pages.
    """

    request: Request
    arrival: int
    tokens: list[int]
    keys: PrefixKeys | None

    @property
    def outputs(self) -> tuple[int, ...]:
        """The tokens of its answer."""
        return tuple(self.tokens[len(self.request.prompt_ids) :])


class WaitingQueue:
    """A queue by priority, lowest value first; tenants of equal priority take turns.

    The requests of one tenant go by priority; ties are first come, first served.
    """

    def __init__(self) -> None:
        # For each tenant, a heap of (priority, arrival number, what waits).
        self._heaps: dict[str, list[tuple[int, int, Waiting]]] = {}
        # When each tenant was served last, as the number of that turn; the latest is the last entry.
        self._turns: dict[str, int] = {}
        self._turn_numbers = itertools.count(1)

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    @property
    def ids(self) -> list[str]:
        return [waiting.request.id for heap in self._heaps.values() for _, _, waiting in heap]

    def first(self, *, without: Collection[str] = ()) -> Waiting | None:
        """Return what goes first.

        Args:
            without: tenants that may have no more slots now.
        """
        heads = [
            (heap[0][0], self._turns.get(tenant, 0), heap[0][1], heap[0][2])
            for tenant, heap in self._heaps.items()
            if tenant not in without
        ]
        # Arrival numbers differ, so what waits is never compared.
        return min(heads)[3] if heads else None

    def push(self, waiting: Waiting) -> None:
        heap = self._heaps.setdefault(waiting.request.tenant, [])
        heapq.heappush(heap, (waiting.request.priority, waiting.arrival, waiting))

    def take(self, waiting: Waiting) -> None:
        """Remove what `first` returned; it is then the turn of other tenants."""
        tenant = waiting.request.tenant
        heap = self._heaps[tenant]
        taken = heapq.heappop(heap)
        assert taken[2] is waiting, "only what is first may be taken"
        if not heap:
            del self._heaps[tenant]
        self._turns.pop(tenant, None)
        self._turns[tenant] = next(self._turn_numbers)
        if len(self._turns) > MAX_REMEMBERED_TENANTS:
            del self._turns[next(iter(self._turns))]

    def remove(self, request_id: str) -> None:
        """Remove a request; unknown ids are ignored."""
        for tenant, heap in list(self._heaps.items()):
            kept = [entry for entry in heap if entry[2].request.id != request_id]
            if len(kept) != len(heap):
                heapq.heapify(kept)
                self._heaps[tenant] = kept
                if not kept:
                    del self._heaps[tenant]

    def observe(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Add tokens that were read from the device; unknown ids are ignored."""
        for heap in self._heaps.values():
            for _, _, waiting in heap:
                if waiting.request.id == request_id:
                    waiting.tokens.extend(token_ids)
