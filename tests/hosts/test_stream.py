"""The stream: every follower gets every record in order, strangers get nothing, and who is gone is named."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vinfer.errors import BindError, ConfigError
from vinfer.hosts.stream import (
    MAX_QUEUED_RECORDS,
    FollowerStream,
    LeaderStream,
    LostMemberError,
    read_secret,
)

SECRET = b"0123456789abcdef" * 2
HOST = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def streams(num_followers: int = 1) -> Iterator[tuple[LeaderStream, list[FollowerStream], int]]:
    port = free_port()
    leader = LeaderStream(HOST, port, SECRET, num_followers)
    followers = [FollowerStream(HOST, port, SECRET, number + 1) for number in range(num_followers)]
    heard = set()

    def all_came() -> bool:
        heard.update(follower for follower, _ in leader.answers())
        return len(heard) == num_followers

    wait(all_came)
    try:
        yield leader, followers, port
    finally:
        for follower in followers:
            follower.close()
        leader.close()


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_every_follower_gets_every_record_in_order() -> None:
    with streams(2) as (leader, followers, _):
        for number in range(100):
            assert leader.send(lambda number: b"%d" % number) == number
        large = b"x" * 300_000
        leader.send(lambda _: large)
        for follower in followers:
            assert [follower.record() for _ in range(100)] == [b"%d" % number for number in range(100)]
            assert follower.record() == large
        followers[1].answer(7)
        found: list[tuple[int, int]] = []
        wait(lambda: bool(found.extend(leader.answers()) or found))
        assert found == [(2, 7)]


def test_a_stranger_gets_nothing() -> None:
    with streams() as (leader, [follower], port):
        stranger = FollowerStream(HOST, port, b"f" * 32, 1)
        lost: list[str] = []

        def is_refused() -> bool:
            leader.answers()
            lost.extend(filter(None, [stranger.lost_leader(0.01)]))
            return bool(lost)

        wait(is_refused)
        # The one who is in takes no notice, nor does the leader.
        leader.send(lambda _: b"record")
        assert follower.record() == b"record"
        assert follower.lost_leader(0.1) is None
        stranger.close()


def test_bytes_that_are_no_handshake_disturb_nobody() -> None:
    with streams() as (leader, [follower], port):
        for content in (b"GET / HTTP/1.1\r\n\r\n", bytes(4096), b"\xff" * 64):
            with socket.create_connection((HOST, port)) as stranger:
                stranger.sendall(content)
                leader.answers()
        assert leader.answers() == []
        leader.send(lambda _: b"record")
        assert follower.record() == b"record"


def test_a_follower_that_has_gone_is_named() -> None:
    with streams(2) as (leader, followers, _):
        followers[1].close()

        def send_for_long() -> None:
            wait(lambda: leader.send(lambda _: b"record") < 0)

        with pytest.raises(LostMemberError, match="member 2 has left the group"):
            send_for_long()


def test_a_follower_that_does_not_keep_up_is_named() -> None:
    """Memory is limited: its queue has a length, whatever the network buffers."""

    def send_many(leader: LeaderStream) -> None:
        for _ in range(100 * MAX_QUEUED_RECORDS):
            leader.send(lambda _: bytes(20_000))

    with streams() as (leader, _, _), pytest.raises(LostMemberError, match="1000 records behind"):
        send_many(leader)


def test_a_follower_notices_that_the_leader_has_gone() -> None:
    with streams() as (leader, [follower], _):
        leader.send(lambda _: b"record")
        assert follower.record() == b"record"
        assert follower.lost_leader(0.05) is None
        leader.close()
        assert follower.lost_leader(10.0) == "the leader has left the group"


def test_a_port_that_is_taken() -> None:
    with socket.create_server((HOST, 0)) as taken, pytest.raises(BindError, match="stream_port"):
        LeaderStream(HOST, taken.getsockname()[1], SECRET, 1)


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("short", 0o600, "has 5 characters: write one secret of at least 32"),
        ("x" * 64, 0o644, "everyone on this machine may use it: run chmod o-rwx"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_a_secret_that_is_none(tmp_path: Path, content: str | None, mode: int, problem: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=problem):
        read_secret(path)
