"""Records that are under way: how old the oldest one is. Any thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class Outstanding:
    """Counts records from their beginning to their end, which come in the same order.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._begun: deque[tuple[int, float]] = deque()

    def begin(self, number: int) -> None:
        """Note that a record is under way."""
        with self._lock:
            self._begun.append((number, self._clock()))

    def end(self, number: int) -> None:
        """Note that a record and all before it are done."""
        with self._lock:
            while self._begun and self._begun[0][0] <= number:
                self._begun.popleft()

    @property
    def age_seconds(self) -> float:
        """The age of the oldest record under way; 0 without one."""
        with self._lock:
            return self._clock() - self._begun[0][1] if self._begun else 0.0
