"""The stream between a leader and its followers: ZeroMQ over TCP, encrypted and authenticated by CURVE.

The leader has one socket and a queue of limited length per follower. A follower has two, so that no socket is
shared by threads: one for records, and one that answers. The keys of both sides come from one secret, and
whoever does not have it gets no further than the handshake. Knows no JAX, and nothing of what records mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from vinfer.config.private_file import read_private_file
from vinfer.errors import BindError, ConfigError, EngineError
from vinfer.hosts.record import MAX_RECORD_BYTES

MIN_SECRET_CHARACTERS = 32
MAX_QUEUED_RECORDS = 1000
"""A follower that is so far behind does not keep up."""
_RECORDS, _ANSWERS = b"r", b"a"
_ANSWER = struct.Struct("<2sq")
_ANSWER_MAGIC = b"va"
# An answer and its name, and what the handshake of CURVE takes.
_MAX_ANSWER_BYTES = 1024
_ZAP = "inproc://zeromq.zap.01"
_HELLO = -1


class LostMemberError(EngineError):
    """A member has left the group, or does not keep up."""


def read_secret(path: Path) -> bytes:
    """Read the group's secret.

    Raises:
        ConfigError: the file cannot be read, everyone may read it, or the secret is short.
    """
    key = "server.distributed.secret_file"
    content = f"one secret of at least {MIN_SECRET_CHARACTERS} characters"
    secret = read_private_file(path, key, content).strip()
    if len(secret) < MIN_SECRET_CHARACTERS:
        raise ConfigError(f"{key} {path} has {len(secret)} characters: write {content}")
    return secret.encode()


def _keys(secret: bytes, role: str) -> tuple[bytes, bytes]:
    """Return the public and the secret CURVE key of a side."""
    own = z85.encode(hmac.new(secret, f"vinfer stream {role}".encode(), hashlib.sha256).digest())
    return zmq.curve_public(own), own


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    if not zmq.has("curve"):
        raise ConfigError(
            "the installed pyzmq has no CURVE, which authenticates the members of a group: install "
            "pyzmq's own wheel"
        )
    return zmq.Context()


def _url(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


class LeaderStream:
    """The leader's side.

    `send` is called by engine threads, everything else by one thread; a lock makes that safe.

    Args:
        host: address to listen on; `*` is all of them.
        num_followers: how many there will be, numbered from 1.
    """

    def __init__(self, host: str, port: int, secret: bytes, num_followers: int) -> None:
        """Listen.

        Raises:
            BindError: the port is taken.
        """
        self._lock = threading.Lock()
        self._followers = [f"{number}".encode() for number in range(1, num_followers + 1)]
        self._expected_key, _ = _keys(secret, "follower")
        self._number = 0
        self.send_seconds = 0.0
        """How long the last `send` took."""
        self._context = context = _context()
        self._zap = context.socket(zmq.REP)
        self._zap.bind(_ZAP)
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.SNDHWM, MAX_QUEUED_RECORDS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_ANSWER_BYTES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, host == "*" or ":" in host)
        self._socket.setsockopt(zmq.CURVE_SERVER, 1)
        _, self._socket.curve_secretkey = _keys(secret, "leader")
        self._socket.setsockopt(zmq.ZAP_DOMAIN, b"vinfer")
        try:
            self._socket.bind(_url(host, port))
        except zmq.ZMQError as error:
            self.close()
            raise BindError(
                f"cannot listen on port {port} for followers: {error.strerror}: stop what uses it or choose "
                "another server.distributed.stream_port"
            ) from None

    @property
    def num_sent(self) -> int:
        return self._number

    def send(self, make: Callable[[int], bytes]) -> int:
        """Queue the next record for every follower, without waiting; return its number.

        Args:
            make: returns the record with a number.

        Raises:
            LostMemberError: a follower is gone, or does not keep up.
        """
        started = time.perf_counter()
        with self._lock:
            number = self._number
            content = make(number)
            for follower in self._followers:
                try:
                    self._socket.send(_RECORDS + follower, zmq.SNDMORE | zmq.NOBLOCK)
                    self._socket.send(content, zmq.NOBLOCK)
                except zmq.Again:
                    raise LostMemberError(
                        f"member {follower.decode()} is {MAX_QUEUED_RECORDS} records behind"
                    ) from None
                except zmq.ZMQError as error:
                    raise LostMemberError(
                        f"member {follower.decode()} has left the group ({error.strerror})"
                    ) from None
            self._number += 1
        self.send_seconds = time.perf_counter() - started
        return number

    def send_to_any(self, make: Callable[[int], bytes]) -> int:
        """Queue a record for the followers that are left; return how many there are."""
        with self._lock:
            content = make(self._number)
            self._number += 1
            num_reached = 0
            for follower in self._followers:
                with contextlib.suppress(zmq.ZMQError):
                    self._socket.send(_RECORDS + follower, zmq.SNDMORE | zmq.NOBLOCK)
                    self._socket.send(content, zmq.NOBLOCK)
                    num_reached += 1
        return num_reached

    def answers(self) -> list[tuple[int, int]]:
        """Return what followers have said: (follower, last record done) pairs, -1 before the first one.

        Also lets new followers in, so it must be called now and then.
        """
        found: list[tuple[int, int]] = []
        with self._lock:
            while self._zap.poll(0):
                self._admit()
            while self._socket.poll(0):
                found += self._read()
        return found

    def close(self) -> None:
        """Leave; followers take it for a death, if they have not been told to stop."""
        if self._context.closed:
            return
        for each in (self._socket, self._zap):
            each.close(linger=0)
        self._context.term()

    def _read(self) -> list[tuple[int, int]]:
        parts = self._socket.recv_multipart()
        if len(parts) != 2 or len(parts[1]) != _ANSWER.size or parts[0][1:] not in self._followers:
            return []
        magic, number = _ANSWER.unpack(parts[1])
        if magic != _ANSWER_MAGIC or parts[0][:1] not in (_RECORDS, _ANSWERS):
            return []
        return [(int(parts[0][1:]), number)]

    def _admit(self) -> None:
        """Answer ZeroMQ's question whether a peer may connect: only with the followers' key."""
        version, request, _, _, _, mechanism, *credentials = self._zap.recv_multipart()
        expected = z85.decode(self._expected_key)
        is_known = mechanism == b"CURVE" and len(credentials) == 1
        is_known = is_known and hmac.compare_digest(credentials[0], expected)
        status = (b"200", b"OK") if is_known else (b"400", b"unknown key")
        self._zap.send_multipart([version, request, *status, b"", b""])


class FollowerStream:
    """A follower's side: `records` on one thread, everything else on another.

    Args:
        host, port: where the leader listens.
    """

    def __init__(self, host: str, port: int, secret: bytes, process_id: int) -> None:
        self._context = _context()
        self._records = self._connect(host, port, secret, _RECORDS + f"{process_id}".encode())
        self._answers = self._connect(host, port, secret, _ANSWERS + f"{process_id}".encode())
        self._monitor = self._records.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self._is_admitted = False
        self._url = _url(host, port)
        self._records.connect(self._url)
        self._answers.connect(self._url)
        self._records.send(_ANSWER.pack(_ANSWER_MAGIC, _HELLO))

    def _connect(self, host: str, port: int, secret: bytes, name: bytes) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, name)
        socket.setsockopt(zmq.RCVHWM, MAX_QUEUED_RECORDS)
        socket.setsockopt(zmq.SNDHWM, MAX_QUEUED_RECORDS)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_RECORD_BYTES)
        socket.setsockopt(zmq.LINGER, 1000)
        # After a break records would be missing.
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.IPV6, 1)
        socket.curve_serverkey, _ = _keys(secret, "leader")
        socket.curve_publickey, socket.curve_secretkey = _keys(secret, "follower")
        return socket

    def record(self) -> bytes:
        """Wait for the next record."""
        content = self._records.recv()
        self._is_admitted = True
        return content

    def answer(self, num_done: int) -> None:
        """Tell the leader that this member lives, and the last record that it has done."""
        try:
            self._answers.send(_ANSWER.pack(_ANSWER_MAGIC, num_done), zmq.NOBLOCK)
        except zmq.Again:
            # The connection is gone or stuck; `has_lost_leader` or the silence tells.
            return

    def lost_leader(self, timeout_seconds: float) -> str | None:
        """Wait for the end of the connection; return what happened, or None if it is still there."""
        if not self._monitor.poll(int(timeout_seconds * 1000)):
            return None
        recv_monitor_message(self._monitor)
        if self._is_admitted:
            return "the leader has left the group"
        return (
            f"{self._url} has sent nothing and closed the connection: give all members the same "
            "server.distributed.secret_file, or look at the leader's log"
        )

    def close(self) -> None:
        """Leave, after sending what is queued, for at most a second."""
        if self._context.closed:
            return
        self._records.disable_monitor()
        for each in (self._monitor, self._records, self._answers):
            each.close()
        self._context.term()
