"""A group ends as one: whatever happens to a member, all are gone soon, with words, and clients are told."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from group import GONE_SECONDS, Group, two_members
from server_process import wait_until

BUNDLE = "llama-of-two-hosts"


def bundle() -> Path:
    pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")
    from tiny.bundles import build

    return build(BUNDLE)


class Client(threading.Thread):
    """Reads one long answer, and keeps its events."""

    def __init__(self, group: Group) -> None:
        super().__init__(daemon=True)
        self._group = group
        self.events: list[str] = []
        self.start()
        wait_until(lambda: len(self.events) > 2, "a stream")

    def run(self) -> None:
        body = {"model": "llama", "prompt": "Once", "max_tokens": 450, "stream": True}
        body |= {"ignore_eos": True, "temperature": 0}
        with (
            contextlib.suppress(httpx.TransportError),
            self._group.leader.http.stream("POST", "/v1/completions", json=body) as response,
        ):
            self.events += (line.removeprefix("data: ") for line in response.iter_lines() if line)

    def error(self) -> dict[str, Any]:
        """Return the error event with which the stream ended."""
        self.join(GONE_SECONDS)
        assert self.events[-1] == "[DONE]", self.events[-2:]
        error: dict[str, Any] = json.loads(self.events[-2])["error"]
        return error

    def text(self) -> str:
        """Return the answer of a stream that ended as it should."""
        self.join(120)
        assert self.events[-1] == "[DONE]"
        return "".join(json.loads(event)["choices"][0]["text"] for event in self.events[:-1])


@contextlib.contextmanager
def ready(folder: Path, **settings: Any) -> Iterator[Group]:
    with two_members(folder, {"llama": bundle()}, **settings) as group:
        group.wait_until_ready()
        yield group


def assert_no_abort(group: Group) -> None:
    """JAX's own way to end is an abort with a core dump."""
    assert all("Check failure stack trace" not in member.log for member in group.members), group.logs


pytestmark = [pytest.mark.bundles(BUNDLE)]


@pytest.mark.parametrize(
    ("signal_number", "place", "busy"),
    [
        pytest.param(signal.SIGKILL, 1, True, id="follower killed, busy"),
        pytest.param(signal.SIGKILL, 1, False, id="follower killed, idle", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 0, True, id="leader killed, busy", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, 0, False, id="leader killed, idle", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, True, id="follower stopped, busy", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 1, False, id="follower stopped, idle", marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, False, id="leader stopped, idle", marks=pytest.mark.slow),
    ],
)
def test_a_member_that_is_gone_ends_the_group(
    tmp_path: Path, signal_number: int, place: int, busy: bool
) -> None:
    with ready(tmp_path) as group:
        client = Client(group) if busy else None
        group.members[place].process.send_signal(signal_number)
        other = Group([group.members[1 - place]])
        began = time.monotonic()
        assert other.exit_codes(GONE_SECONDS) == [1]
        assert time.monotonic() - began < GONE_SECONDS
        what = "silent" if signal_number == signal.SIGSTOP else "has left the group"
        assert what in other.leader.log or "Gloo" in other.leader.log
        assert_no_abort(other)
        if client is not None and place == 1:
            assert client.error()["code"] == "engine_error"


@pytest.mark.parametrize(
    ("place", "failpoint", "words"),
    [
        pytest.param(
            1, "take_records/run hang", "stall_seconds", id="follower hangs", marks=pytest.mark.slow
        ),
        pytest.param(
            1,
            "take_records/run raise",
            "this member ends: RuntimeError",
            id="follower raises",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            0, "engine-llama/run hang", "step_timeout_seconds", id="leader hangs", marks=pytest.mark.slow
        ),
        pytest.param(
            0,
            "engine-llama/run raise",
            "engine of model llama failed",
            id="leader raises",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_member_that_is_stuck_or_fails_ends_the_group(
    tmp_path: Path, place: int, failpoint: str, words: str
) -> None:
    with ready(tmp_path) as group:
        client = Client(group)
        group.members[place].fail(failpoint)
        assert group.exit_codes(GONE_SECONDS) == [1, 1]
        assert client.error()["code"] == "engine_error"
        assert words in group.logs
        assert_no_abort(group)


@pytest.mark.slow
def test_a_stream_ends_as_it_should_when_all_members_get_sigterm(tmp_path: Path) -> None:
    with ready(tmp_path) as group:
        expected = Client(group).text()
        client = Client(group)
        assert group.terminate() == [0, 0], group.logs
        assert client.text() == expected
        assert "following until the leader stops" in group.members[1].log


@pytest.mark.slow
def test_readiness_waits_for_a_member_that_is_late_and_nothing_is_compiled_again(tmp_path: Path) -> None:
    with ready(tmp_path, late_seconds=60.0) as group:
        assert group.leader.post("/v1/completions", model="llama", prompt="x", max_tokens=2)["choices"]
        for member in group.members:
            ready_programs = [line for line in member.log.splitlines() if "programs ready" in line]
            assert len(ready_programs) == 1
            number = ready_programs[0].split(" programs ready, ")
            assert number[1].startswith(f"{number[0].split()[-1]} of them loaded as machine code")
        assert group.terminate() == [0, 0]


@pytest.mark.slow
def test_a_wrong_bundle_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    from tiny.bundles import build

    other = build("llama-tp2")
    with two_members(
        tmp_path, {"llama": bundle()}, of_follower=["--set", f"models[0].source={other}"]
    ) as group:
        assert group.exit_codes(60) == [5, 5], group.logs
        for member in group.members:
            assert f"model llama: bundle is {other.name}" in member.log
            assert "loading weights" not in member.log
        assert_no_abort(group)


@pytest.mark.slow
def test_another_secret_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "other"
    secret.write_text("f" * 64)
    secret.chmod(0o600)
    of_follower = ["--set", f"server.distributed.secret_file={secret}"]
    with two_members(tmp_path, {"llama": bundle()}, of_follower=of_follower) as group:
        codes = group.exit_codes(60)
        assert 0 not in codes
        assert "give all members the same server.distributed.secret_file" in group.members[1].log
        assert "loading weights" not in group.logs
        assert_no_abort(group)
