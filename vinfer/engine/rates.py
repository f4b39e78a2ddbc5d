"""Measures how fast requests finish, and how long dispatches keep the device busy."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

NUM_REMEMBERED = 64
MAX_SECONDS = 3600.0
MARGIN_FRACTION = 0.25
"""The part of the work in flight during which the next work must be on its way to the device."""
MIN_MARGIN_SECONDS = 0.002
MAX_SPARE_SECONDS = 1.0
_GROWTH = 1.02


class FinishRate:
    """The rate of the last requests that finished, to tell a refused client when there will be room.

    Time counts only while the engine has work. The engine thread writes, the event loop reads.

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


class DispatchTimes:
    """How long dispatches of each kind keep the device busy, and until when it is busy; one thread.

    Tokens may be read later than they were there, so the shortest time is believed. It grows with each longer
    one, because contexts grow.
    """

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}
        self._unread: deque[tuple[Hashable, float]] = deque()
        self._freed = 0.0

    def enqueued(self, kind: Hashable, now: float) -> None:
        """Note that a dispatch was enqueued; `now` is a monotonic time in seconds, here and below."""
        self._unread.append((kind, now))

    def read(self, now: float) -> None:
        """Note that the tokens of the oldest dispatch were read."""
        kind, enqueued = self._unread.popleft()
        taken = now - max(enqueued, self._freed)
        self._freed = now
        self._seconds[kind] = min(taken, self._seconds.get(kind, taken) * _GROWTH)

    def found_idle(self, now: float) -> None:
        """Note that the device has no work left, though its only dispatch has not been read.

        Otherwise a wait that was too long would be believed to be work, and the next one would be as long.
        """
        if len(self._unread) == 1:
            kind, enqueued = self._unread[0]
            at_most = now - max(enqueued, self._freed)
            self._seconds[kind] = min(at_most, self._seconds.get(kind, at_most))

    @property
    def last_is_long(self) -> bool:
        """Whether the newest dispatch alone leaves time to enqueue the next one; False if that is unknown."""
        return bool(self._unread) and _spare(self._seconds.get(self._unread[-1][0], 0.0)) > 0

    def spare_seconds(self, now: float) -> float:
        """Return how long the next dispatch can wait without making the device wait; 0 if that is unknown."""
        if not self._unread or any(kind not in self._seconds for kind, _ in self._unread):
            return 0.0
        elapsed = now - max(self._unread[0][1], self._freed)
        busy = sum(self._seconds[kind] for kind, _ in self._unread)
        return min(max(_spare(busy) - elapsed, 0.0), MAX_SPARE_SECONDS)


def _spare(busy_seconds: float) -> float:
    return busy_seconds - max(MARGIN_FRACTION * busy_seconds, MIN_MARGIN_SECONDS)
