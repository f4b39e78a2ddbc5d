"""The leader over real sockets and followers on threads; JAX's part is replaced."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vinfer.bundle.manifest import ArraySpec, Manifest, ProgramSpec
from vinfer.bundle.programs import ProgramShape
from vinfer.config import DistributedConfig
from vinfer.errors import BundleError
from vinfer.hosts.agreement import bundle_facts, group_facts
from vinfer.hosts.leader import Leader
from vinfer.hosts.membership import Membership
from vinfer.hosts.record import Kind, RecordFormat
from vinfer.hosts.stream import FollowerStream, LostMemberError

SECRET = "0123456789abcdef" * 2
HOST = "127.0.0.1"
SET_SLOT = ProgramShape(kind="set_slot")
MANIFEST = Manifest.model_construct(
    key="k",
    files={"a": "1"},
    programs=(
        ProgramSpec(
            shape=SET_SLOT,
            file="x",
            inputs=(ArraySpec(name="slot", shape=(), dtype="int32"),),
            outputs=(),
        ),
    ),
)


class Group:
    """Stands for `ProcessGroup`: a follower that says what it is asked for."""

    other_key = "k"

    def __init__(self, *_: Any, **__: Any) -> None:
        self.met: list[str] = []
        self.pages: list[int] = []

    def tell(self, name: str, facts: dict[str, Any]) -> None:
        if name.startswith("pages"):
            self.pages = facts["num_pages"]

    def told(self, process_id: int, name: str) -> dict[str, Any]:
        if name == "group":
            return group_facts(2, ["m"])
        return bundle_facts(MANIFEST.model_copy(update={"key": self.other_key}))

    def meet(self, name: str, seconds: float) -> None:
        self.met.append(name)


class Follower(threading.Thread):
    """Answers each record until it is told to stop doing so."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.stream = FollowerStream(HOST, port, SECRET.encode(), 1)
        self.records: list[bytes] = []
        self.answers = True
        self.repeats = True
        self.has_ended = threading.Event()
        self._answering = threading.Thread(target=self._answer, daemon=True)
        self._answering.start()
        self.start()

    def run(self) -> None:
        kinds = RecordFormat([MANIFEST])
        while not self.has_ended.is_set():
            self.records.append(self.stream.record())
            last = kinds.decode(self.records[-1], number=len(self.records) - 1)
            if last.kind in (Kind.STOP, Kind.FAIL):
                self.has_ended.set()

    def _answer(self) -> None:
        num_done = -1
        while not self.has_ended.wait(0.1):
            if self.repeats:
                num_done = len(self.records) - 1
            if self.answers:
                self.stream.answer(num_done)
        # A follower ends when it has done everything, and says so.
        if self.answers and self.repeats:
            self.stream.answer(len(self.records) - 1)

    def close(self) -> None:
        for thread in (self, self._answering):
            thread.join(20)
        self.stream.close()


@contextlib.contextmanager
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> Iterator[tuple[Leader, Follower]]:
    monkeypatch.setattr("vinfer.hosts.process_group.ProcessGroup", Group)
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    with socket.create_server((HOST, 0)) as sock:
        port = sock.getsockname()[1]
    config = DistributedConfig(stream_port=port, secret_file=secret, heartbeat_seconds=2, **keys)
    leader = Leader(Membership(leader=HOST, num_processes=2, process_id=0), config)
    # Nothing may end the test's process.
    monkeypatch.setattr("vinfer.hosts.leader.EXIT_SECONDS", 1e9)
    follower = Follower(port)
    leader.join(["m"])
    monkeypatch.setattr("vinfer.hosts.leader.FAIL_SECONDS", 0.0)
    try:
        yield leader, follower
    finally:
        leader.fail()
        # Before `EXIT_SECONDS` is what it was; the watch of a group without failure ends with its process.
        leader.failure = leader.failure or "the test is over"
        leader._watch.join(20)
        assert not leader._watch.is_alive()
        follower.close()
        leader._stream.close()


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_group_from_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(tmp_path, monkeypatch) as (leader, follower):
        model = leader.add(0, "m", MANIFEST)
        model.tell_pages([3])
        model.meet()
        assert (leader._group.pages, leader._group.met) == ([3], ["loaded0"])  # type: ignore[attr-defined]
        model.announce(SET_SLOT, {"slot": np.int32(5)})
        leader.say_ready()
        time.sleep(1.2)
        assert leader.failure is None
        leader.stop()
        wait(follower.has_ended.is_set)
    found = [
        RecordFormat([MANIFEST]).decode(content, number=number)
        for number, content in enumerate(follower.records)
    ]
    [row] = [record for record in found if record.kind == Kind.PROGRAM]
    assert row.inputs["slot"] == 5
    signals = [record.kind for record in found if record.kind not in (Kind.PING, Kind.PROGRAM)]
    assert signals == [Kind.READY, Kind.STOP]
    # Also while nobody asks for anything.
    assert sum(record.kind == Kind.PING for record in found) >= 2


def test_another_bundle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "other_key", "other")
    with (
        joined(tmp_path, monkeypatch) as (leader, _),
        pytest.raises(BundleError, match="model m: bundle is other on member 1 and k on the leader"),
    ):
        leader.add(0, "m", MANIFEST)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("answers", "member 1 has been silent for 2"),
        ("repeats", r"member 1 has been at record \d+ for 1.* \(server.distributed.stall_seconds is 1\)"),
    ],
)
def test_a_follower_that_is_silent_or_stuck_ends_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, words: str
) -> None:
    stall_seconds = 1.0 if what == "repeats" else 30.0
    with joined(tmp_path, monkeypatch, stall_seconds=stall_seconds) as (leader, follower):
        model = leader.add(0, "m", MANIFEST)
        if what == "answers":
            # Silence is no sign while models are loaded.
            follower.answers = False
            time.sleep(2.5)
            assert leader.failure is None
            follower.answers = True
            wait(lambda: leader._heard[1] > time.monotonic() - 0.5)
        leader.say_ready()
        setattr(follower, what, False)
        wait(lambda: leader.failure is not None)
        assert leader.failure is not None
        with pytest.raises(LostMemberError, match=words):
            model.announce(SET_SLOT, {"slot": np.int32(5)})
