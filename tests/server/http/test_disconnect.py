"""A client that disconnects frees its slots, however and whenever it does so."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

import pytest
from running_server import RunningServer


def begin(server: RunningServer, **fields: Any) -> socket.socket:
    """Send a chat request and leave the answer unread."""
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, **fields}
    content = json.dumps(body).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sock = socket.create_connection(("127.0.0.1", server.port), 20)
    sock.sendall(head + b"Content-Length: %d\r\n\r\n" % len(content) + content)
    return sock


def close(sock: socket.socket, how: str) -> None:
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("is_stuck", [True, False], ids=["before the first token", "while decoding"])
def test_leaving_cancels_every_choice(server: RunningServer, how: str, stream: bool, is_stuck: bool) -> None:
    server.engine.is_stuck = is_stuck
    server.engine.seconds_per_event = 0.05
    sock = begin(server, stream=stream, n=3)
    server.engine.wait_until_submitted(3)
    if stream:
        assert b"200 OK" in sock.recv(4096)
    close(sock, how)
    server.engine.wait_until_cancelled(3)
    assert set(server.engine.cancelled) == {request.id for request in server.engine.requests}


def test_leaving_during_the_body_submits_nothing(server: RunningServer) -> None:
    sock = socket.create_connection(("127.0.0.1", server.port), 20)
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Content-Length: 1000\r\n\r\n{"model'
    )
    close(sock, "close")
    assert server.chat().status_code == 200
    assert len(server.engine.requests) == 1


def test_a_finished_answer_cancels_nothing(server: RunningServer) -> None:
    server.chat(n=2)
    server.chat(n=2, stream=True)
    assert server.engine.cancelled == []
