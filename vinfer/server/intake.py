"""Limits the bytes of request bodies that are being read and prepared, so that they cannot fill the memory.

A body costs several times its length until its prompt is with the engine: as bytes, as JSON, as text, as
tokens. Event loop only.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

from vinfer.errors import QueueFullError

# glibc keeps freed memory for the thread that used it; after this many bytes it is told to give it back.
TRIM_AFTER_BYTES = 32 * 2**20


class HeldBody(Protocol):
    """The body of one request: whose it is, and how many of its bytes are counted here."""

    tenant: str
    num_body_bytes: int


class Intake:
    """The bytes of bodies in preparation, by tenant.

    Attributes:
        max_bytes: the limit of all together; `server.max_preparing_bytes`, or one body if that is larger.
        has_several_tenants: one tenant may then hold half of it.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.has_several_tenants = False
        self._num_bytes = 0
        self._held: dict[str, int] = {}
        self._num_untrimmed_bytes = 0

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def take(self, body: HeldBody, num_bytes: int) -> None:
        """Count some more bytes of a request's body.

        Raises:
            QueueFullError: there are too many.
        """
        held = self._held.get(body.tenant, 0) + num_bytes
        most_of_one = self.max_bytes // 2 if self.has_several_tenants else self.max_bytes
        # The only body in preparation may always be read: its own limit is `server.max_body_bytes`.
        is_alone = self._num_bytes == body.num_body_bytes
        if not is_alone and (self._num_bytes + num_bytes > self.max_bytes or held > most_of_one):
            raise QueueFullError(
                f"the server is preparing {self._num_bytes} bytes of requests; server.max_preparing_bytes is "
                f"{self.max_bytes}: try again later"
            )
        self._held[body.tenant] = held
        self._num_bytes += num_bytes
        body.num_body_bytes += num_bytes

    def release(self, body: HeldBody) -> None:
        """Stop counting a request's body; safe to call twice."""
        num_bytes, body.num_body_bytes = body.num_body_bytes, 0
        self._num_bytes -= num_bytes
        self._num_untrimmed_bytes += num_bytes
        left = self._held.pop(body.tenant, 0) - num_bytes
        if left > 0:
            self._held[body.tenant] = left

    def is_trim_due(self) -> bool:
        """Return whether memory should be given back now, and count it as done."""
        is_due = self._num_untrimmed_bytes > TRIM_AFTER_BYTES and self._num_bytes == 0
        if is_due:
            self._num_untrimmed_bytes = 0
        return is_due


def give_memory_back() -> None:
    """Return freed memory to the operating system, where the C library can; milliseconds, on a worker."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
