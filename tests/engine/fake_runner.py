"""A runner without a device, whose tokens can be computed by hand.

The first token of a request is the sum of its prompt plus one, modulo 1000; each later token is the previous
one plus one, modulo 1000. It finds the prompt, and the answer so far, in the pages of the KV cache. Programs
take effect when they are enqueued, in order, as on a real device. Their
tokens can be read once the test has let them through.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Literal

from engine_requests import PAGE_SIZE

from vinfer.engine.kv_cache.pages import PageCopy
from vinfer.engine.request import FinishReason, Request, TokenEvent
from vinfer.engine.schedule import Admission, Chunk, Decode, Prefill

VOCABULARY = 1000
GUARD_SECONDS = 30.0
"""Only ends a test that hangs; nothing else waits that long."""

Kind = Literal["set_slot", "copy_page", "prefill", "decode", "read"]
LogEntry = tuple[Kind, str | int]
"""What happened: a request was put into a slot, or a dispatch (by number) was enqueued or read."""


@dataclasses.dataclass(frozen=True)
class _Cache:
    """The tokens of a row, in its pages: {(shard, page): {offset: token}}."""

    memory: dict[tuple[int, int], dict[int, int]]
    shard: int
    pages: Sequence[int]

    def write(self, position: int, token: int) -> None:
        page = self.memory.setdefault((self.shard, self.pages[position // PAGE_SIZE]), {})
        page[position % PAGE_SIZE] = token

    def read(self, num_positions: int) -> list[int]:
        return [
            self.memory[self.shard, self.pages[position // PAGE_SIZE]][position % PAGE_SIZE]
            for position in range(num_positions)
        ]


@dataclasses.dataclass
class _Slot:
    request: Request
    num_left: int
    cache: _Cache = dataclasses.field(default_factory=lambda: _Cache({}, 0, ()))
    num_positions: int = 0
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
    is_ready: bool = False

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
        self._pages: dict[tuple[int, int], dict[int, int]] = {}
        self._num_dispatches = 0
        self._log: list[LogEntry] = []

    # Called by the engine.

    def set_slot(self, admission: Admission) -> None:
        self._note("set_slot", admission.request.id)
        request = admission.request
        self._slots[admission.slot] = _Slot(request, request.params.max_tokens - len(admission.outputs))

    def prefill(self, work: Prefill) -> FakeDispatch:
        for chunk in work.chunks:
            if chunk.copy is not None:
                self._note("copy_page", chunk.request.id)
                self._copy(chunk.copy)
        events = []
        for chunk in work.chunks:
            slot = self._slots[chunk.slot]
            assert slot.request is chunk.request
            slot.cache = _Cache(self._pages, chunk.shard, chunk.pages[0])
            for place, token in enumerate(chunk.tokens, chunk.start):
                slot.cache.write(place, token)
            slot.num_positions = chunk.start + chunk.length
            if chunk.samples:
                slot.token = self._last_token(slot, chunk)
                token, finish_reason = slot.sample()
                event = TokenEvent((token,), None, finish_reason, num_cached_tokens=chunk.num_cached)
                events.append((chunk.request, event))
            elif chunk.is_final:
                event = TokenEvent(finish_reason="length", num_cached_tokens=chunk.num_cached)
                events.append((chunk.request, event))
        return self._dispatch("prefill", events)

    def decode(self, work: Decode) -> FakeDispatch:
        events = []
        for place, owner, pages in zip(work.slots, work.owners, work.pages, strict=True):
            slot = self._slots[place]
            assert slot.request is owner
            slot.cache = dataclasses.replace(slot.cache, pages=pages[0])
            steps: list[tuple[int, FinishReason | None]] = []
            while slot.is_active and len(steps) < work.step_limit:
                slot.cache.write(slot.num_positions, slot.token)
                slot.num_positions += 1
                steps.append(slot.sample())
            if steps:
                events.append((owner, TokenEvent(tuple(token for token, _ in steps), None, steps[-1][1])))
        return self._dispatch("decode", events)

    def _copy(self, copy: PageCopy) -> None:
        (source, target) = (copy.sources[0], copy.targets[0])
        self._pages[copy.shard, target] = dict(self._pages[copy.shard, source])

    def _last_token(self, slot: _Slot, chunk: Chunk) -> int:
        """Return the number before the next token: the last of the answer, or the sum of the prompt."""
        prompt_len = len(chunk.request.prompt_ids)
        tokens = slot.cache.read(slot.num_positions)
        assert tuple(tokens[:prompt_len]) == chunk.request.prompt_ids
        return tokens[-1] if len(tokens) > prompt_len else sum(tokens)

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
