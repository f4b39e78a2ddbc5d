"""Requests without a slot, in the order in which they get one. Pure data of the scheduler."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

from vinfer.engine.prefix_keys import PrefixKeys
from vinfer.engine.request import Request


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
    """A queue by priority, lowest value first; ties are first come, first served."""

    def __init__(self) -> None:
        # A heap of (priority, arrival number, what waits).
        self._heap: list[tuple[int, int, Waiting]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def ids(self) -> list[str]:
        return [waiting.request.id for _, _, waiting in self._heap]

    @property
    def first(self) -> Waiting:
        return self._heap[0][2]

    def push(self, waiting: Waiting) -> None:
        heapq.heappush(self._heap, (waiting.request.priority, waiting.arrival, waiting))

    def pop(self) -> Waiting:
        """Remove the first and return it."""
        return heapq.heappop(self._heap)[2]

    def remove(self, request_id: str) -> None:
        """Remove a request; unknown ids are ignored."""
        self._heap = [entry for entry in self._heap if entry[2].request.id != request_id]
        heapq.heapify(self._heap)

    def observe(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Add tokens that were read from the device; unknown ids are ignored."""
        for _, _, waiting in self._heap:
            if waiting.request.id == request_id:
                waiting.tokens.extend(token_ids)
