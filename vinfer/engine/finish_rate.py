"""Measures how fast requests finish, to tell a refused client when there will be room.

Time counts only while the engine has work. The engine thread writes, the event loop reads.
"""

from __future__ import annotations

from collections import deque

NUM_REMEMBERED = 64
MAX_SECONDS = 3600.0


class FinishRate:
    """The rate of the last requests that finished.

    Args:
        num_slots: before any request has finished, this many are expected to finish together.
    """

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._finished: deque[float] = deque([0.0], maxlen=NUM_REMEMBERED + 1)

    def note(self, busy_seconds: float) -> None:
        """Note that a request finished, this long after the start, idle time left out."""
        self._finished.append(busy_seconds)

    def seconds_for(self, num_requests: int, busy_seconds: float) -> float:
        """Return how long so many more requests will take; between 1 second and MAX_SECONDS."""
        finished = tuple(self._finished)
        elapsed = busy_seconds - finished[0]
        num_finished = len(finished) - 1 or self._num_slots
        return min(max(num_requests * elapsed / num_finished, 1.0), MAX_SECONDS)
