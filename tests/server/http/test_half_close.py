"""Connections at their edges: clients that close their half, and HTTP/1.0, which knows no chunks."""

from __future__ import annotations

import json
import socket

import pytest
from fake_engine import START, letters
from running_server import RunningServer, events

TEXT = letters(START, 4)


def ask(server: RunningServer, version: str, *, stream: bool, extra: str = "") -> socket.socket:
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    content = json.dumps({**body, "stream": stream})
    head = (
        f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    )
    sock = socket.create_connection(("127.0.0.1", server.port), 20)
    sock.sendall(f"{head}{extra}Content-Length: {len(content)}\r\n\r\n{content}".encode())
    return sock


def read_to_end(sock: socket.socket) -> tuple[str, str]:
    """Return head and body of the answer, without interim answers before it."""
    received = b""
    while piece := sock.recv(65536):
        received += piece
    sock.close()
    text = received.decode()
    while text.startswith("HTTP/1.1 100 "):
        text = text.partition("\r\n\r\n")[2]
    head, _, body = text.partition("\r\n\r\n")
    return head.lower(), body


def without_chunks(body: str) -> str:
    plain = ""
    while True:
        length, _, rest = body.partition("\r\n")
        if length == "0":
            return plain
        plain += rest[: int(length, 16)]
        body = rest[int(length, 16) + 2 :]


def said(head: str, body: str) -> str:
    if "transfer-encoding: chunked" in head:
        body = without_chunks(body)
    if "text/event-stream" not in head:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    choices = [choice for event in events(body.lstrip("\n")) for choice in event["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_closes_its_half_gets_its_answer(
    server: RunningServer, version: str, stream: bool
) -> None:
    server.engine.seconds_per_event = 0.15
    sock = ask(server, version, stream=stream)
    server.engine.wait_until_submitted(1)
    sock.shutdown(socket.SHUT_WR)
    head, body = read_to_end(sock)
    assert " 200 ok" in head.split("\r\n")[0]
    assert said(head, body) == TEXT
    assert server.engine.cancelled == []


def test_a_client_that_closes_its_half_first(server: RunningServer) -> None:
    """The end of the connection may arrive with the request."""
    sock = ask(server, "1.1", stream=False)
    sock.shutdown(socket.SHUT_WR)
    assert said(*read_to_end(sock)) == TEXT


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("extra", ["", "Connection: keep-alive\r\n"])
def test_http_1_0_gets_no_chunks(server: RunningServer, stream: bool, extra: str) -> None:
    head, body = read_to_end(ask(server, "1.0", stream=stream, extra=extra))
    assert "transfer-encoding" not in head
    assert ("content-length" in head) == (not stream)
    assert "connection: close" in head
    assert said(head, body) == TEXT


def test_http_1_0_of_an_error(server: RunningServer) -> None:
    sock = socket.create_connection(("127.0.0.1", server.port), 20)
    sock.sendall(b"GET /nothing HTTP/1.0\r\n\r\n")
    head, body = read_to_end(sock)
    assert " 404 " in head
    assert len(body.encode()) == int(head.partition("content-length: ")[2].split("\r\n")[0])
