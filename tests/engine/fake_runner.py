"""A runner without a device, whose tokens can be computed by hand.

The first token of a request is the sum of its prompt plus one, modulo 1000; each later token is the previous
one plus one, modulo 1000. Programs take effect when they are enqueued, in order, as on a real device. Their
tokens can be read once the test has let them through.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Literal

from vinfer.engine.request import FinishReason, Request, TokenEvent
from vinfer.engine.schedule import Admission, Decode, Prefill

VOCABULARY = 1000
GUARD_SECONDS = 30.0
"""Only ends a test that hangs; nothing else waits that long."""

Kind = Literal["set_slot", "copy_slot", "prefill", "decode", "read"]
LogEntry = tuple[Kind, str | int]
"""What happened: a request was put into a slot, or a dispatch (by number) was enqueued or read."""


@dataclasses.dataclass
class _Slot:
    request: Request
    num_left: int
    token: int = 0
    is_active: bool = False

    def sample(self) -> tuple[int, FinishReason | None]:
        self.token = (self.token + 1) % VOCABULARY
        self.num_left -= 1
        finish_reason: FinishReason | None = "length" if self.num_left == 0 else None
        if self.token in self.request.params.stop_token_ids:
            finish_reason = "stop"
        self.is_active = finish_reason is None
        return self.token, finish_reason


@dataclasses.dataclass
class FakeDispatch:
    runner: FakeRunner
    number: int
    events: list[tuple[Request, TokenEvent]]

    def read(self) -> list[tuple[Request, TokenEvent]]:
        self.runner.read(self.number)
        return self.events


class FakeRunner:
    """Replaces `Runner`; called by the engine thread and by the test.

    Args:
        num_readable: dispatches whose tokens can be read before `let_through` is called; None for all.
        fails_at: the log entry at which it raises; None for never.
    """

    def __init__(self, num_readable: int | None = None, fails_at: LogEntry | None = None) -> None:
        self._fails_at = fails_at
        self._num_readable = num_readable
        self._is_blocked = False
        self._changed = threading.Condition()
        self._slots: dict[int, _Slot] = {}
        self._prompts: dict[int, tuple[int, ...]] = {}
        self._num_dispatches = 0
        self._log: list[LogEntry] = []

    # Called by the engine.

    def set_slot(self, admission: Admission) -> None:
        self._note("set_slot", admission.request.id)
        request = admission.request
        self._slots[admission.slot] = _Slot(request, request.params.max_tokens)

    def prefill(self, work: Prefill) -> FakeDispatch:
        events = []
        for chunk in work.chunks:
            slot = self._slots[chunk.slot]
            assert slot.request is chunk.request
            num_cached = 0
            if chunk.copied_from is not None:
                num_cached = chunk.start
                self._note("copy_slot", chunk.request.id)
                held = self._prompts[chunk.copied_from]
                assert held[: chunk.start] == chunk.request.prompt_ids[: chunk.start]
                slot.token = sum(held[: chunk.start])
                self._prompts[chunk.slot] = held[: chunk.start]
            end = chunk.start + chunk.length
            slot.token += sum(chunk.request.prompt_ids[chunk.start : end])
            self._prompts[chunk.slot] = chunk.request.prompt_ids[:end]
            if chunk.samples:
                token, finish_reason = slot.sample()
                event = TokenEvent((token,), None, finish_reason, num_cached_tokens=num_cached)
                events.append((chunk.request, event))
            elif chunk.is_final:
                event = TokenEvent(finish_reason="length", num_cached_tokens=num_cached)
                events.append((chunk.request, event))
        return self._dispatch("prefill", events)

    def decode(self, work: Decode) -> FakeDispatch:
        events = []
        for place, owner in zip(work.slots, work.owners, strict=True):
            slot = self._slots[place]
            steps: list[tuple[int, FinishReason | None]] = []
            while slot.is_active and len(steps) < work.step_limit:
                steps.append(slot.sample())
            if steps:
                events.append((owner, TokenEvent(tuple(token for token, _ in steps), None, steps[-1][1])))
        return self._dispatch("decode", events)

    def read(self, number: int) -> None:
        with self._changed:
            self._note("read", number)
            self._is_blocked = self._num_readable == 0
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._num_readable != 0, GUARD_SECONDS):
                raise AssertionError(f"dispatch {number} was never let through")
            self._is_blocked = False
            if self._num_readable is not None:
                self._num_readable -= 1

    # Called by tests.

    @property
    def log(self) -> list[LogEntry]:
        with self._changed:
            return list(self._log)

    def let_through(self, num_dispatches: int | None = None) -> None:
        """Let the engine read some more dispatches, or all from now on if no number is given."""
        with self._changed:
            if num_dispatches is None or self._num_readable is None:
                self._num_readable = None
            else:
                self._num_readable += num_dispatches
            self._is_blocked = False
            self._changed.notify_all()

    def wait_until_blocked(self) -> list[LogEntry]:
        """Wait until the engine asks for tokens that are not let through; return the log."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._is_blocked, GUARD_SECONDS), self._log
            return list(self._log)

    def _dispatch(self, kind: Kind, events: list[tuple[Request, TokenEvent]]) -> FakeDispatch:
        number = self._num_dispatches
        self._num_dispatches += 1
        self._note(kind, number)
        return FakeDispatch(self, number, events)

    def _note(self, kind: Kind, what: str | int) -> None:
        if self._fails_at == (kind, what):
            raise RuntimeError("the device at 0xdead is gone")
        with self._changed:
            self._log.append((kind, what))
            self._changed.notify_all()
