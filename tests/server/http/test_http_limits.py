"""Limits below the routes, over raw sockets: headers, slow senders, slow readers, malformed HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from running_server import RunningServer, Start

from vinfer.server.http import uvicorn_protocol

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /liveness HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def impatient(start: Start) -> Iterator[RunningServer]:
    with start(header_timeout_seconds=0.5, keep_alive_seconds=0.5) as server:
        yield server


def exchange(port: int, *pieces: bytes, pause_seconds: float = 0.0) -> bytes:
    """Send the pieces and read until the server closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), 20) as sock:
        for i, piece in enumerate(pieces):
            if i:
                time.sleep(pause_seconds)
            try:
                sock.sendall(piece)
            except OSError:
                break
        while True:
            try:
                piece = sock.recv(65536)
            except ConnectionResetError:
                return received
            if not piece:
                return received
            received += piece


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


def error_of(response: bytes) -> Any:
    head, _, body = response.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert f"x-request-id: {error['request_id']}".encode() in head
    return error


@pytest.mark.parametrize(
    "pieces",
    [
        [GET + b"X-Big: " + b"a" * 70_000 + b"\r\n\r\n"],
        [GET + b"X-Big: ", *[b"a" * 60_000] * 30],
        [GET, *[b"X-Some: " + b"a" * 1000 + b"\r\n"] * 80, b"\r\n"],
        [b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"],
        [GET + b"".join(b"X-%d: 1\r\n" % i for i in range(100)) + b"\r\n"],
    ],
    ids=["one value", "endless value", "many values", "path", "101 headers"],
)
def test_too_many_headers(server: RunningServer, pieces: list[bytes]) -> None:
    response = exchange(server.port, *pieces)
    assert status_of(response) == 431
    assert error_of(response)["code"] == "headers_too_large"
    assert server.http.get("/liveness").status_code == 200


def test_trailers_are_headers_too(server: RunningServer) -> None:
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: "
    assert status_of(exchange(server.port, head, *[b"a" * 60_000] * 30)) == 431


def test_headers_within_the_limits(server: RunningServer) -> None:
    many = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 600) for i in range(97))
    response = exchange(server.port, GET + many + b"Connection: close\r\n\r\n")
    assert status_of(response) == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_malformed_http(server: RunningServer, request_bytes: bytes) -> None:
    response = exchange(server.port, request_bytes)
    assert status_of(response) == 400
    assert error_of(response)["type"] == "invalid_request_error"


def test_slow_headers(impatient: RunningServer) -> None:
    response = exchange(impatient.port, GET, b"X-Slow: 1\r\n", b"X-Slow: 2\r\n", pause_seconds=0.3)
    assert status_of(response) == 408
    assert error_of(response)["code"] == "request_timeout"


@pytest.mark.parametrize("pieces", [[b""], [b"\r\n", b"\r\n", b"\r\n"]], ids=["silent", "blank lines"])
def test_connections_that_send_no_request_are_closed(impatient: RunningServer, pieces: list[bytes]) -> None:
    assert exchange(impatient.port, *pieces, pause_seconds=0.1) == b""


def test_bodies_that_trickle(impatient: RunningServer) -> None:
    head = HEAD + b"Content-Length: 100\r\n\r\n"
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    bodies = ([head], [head, *[b" "] * 5], [chunked, *[b"1\r\n \r\n"] * 5])
    with ThreadPoolExecutor(len(bodies)) as pool:
        sent = [pool.submit(exchange, impatient.port, *pieces, pause_seconds=0.3) for pieces in bodies]
    assert [status_of(response.result()) for response in sent] == [408] * 3


def test_a_slow_but_steady_body_arrives(impatient: RunningServer) -> None:
    head = HEAD + b"Connection: close\r\nContent-Length: 8192\r\n\r\n"
    response = exchange(impatient.port, head, *[b" " * 2048] * 4, pause_seconds=0.2)
    assert status_of(response) == 400
    assert "body is empty" in error_of(response)["message"]


def test_time_to_answer_is_not_time_to_send(impatient: RunningServer) -> None:
    impatient.engine.reset()
    impatient.engine.seconds_per_event = 0.4
    assert impatient.chat(max_tokens=3).status_code == 200


def test_idle_connections_are_closed_and_live_ones_are_not(impatient: RunningServer) -> None:
    start = time.monotonic()
    assert exchange(impatient.port, GET + b"\r\n").count(b"HTTP/1.1 200") == 1
    assert time.monotonic() - start >= 0.4
    # Answered before its body arrived: the connection must not stay open forever.
    early = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n"
    assert status_of(exchange(impatient.port, early, b"{}", pause_seconds=0.2)) == 404


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    last = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    response = exchange(server.port, (GET + b"\r\n") * 3 + last)
    assert response.count(b"HTTP/1.1 200") == 4
    assert response.endswith(b"}")
    assert response.rindex(b"alive") < response.index(b"version")


def test_an_offer_of_http2_is_ignored(server: RunningServer) -> None:
    offer = GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 20) as sock:
        sock.sendall(offer)
        assert sock.recv(64).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("upgrade", [b"Upgrade: h2c\r\n", b"upgrade:h2c \r\n"])
@pytest.mark.parametrize("chunked", [True, False])
def test_the_body_of_a_request_that_offers_http2_is_read(
    server: RunningServer, upgrade: bytes, chunked: bool
) -> None:
    """Java's HttpClient offers it with its first request; the parser then took the body for HTTP/2."""
    body = b'{"model": "fake", "messages": [{"role": "user", "content": "Upgrade: h2c"}], "max_tokens": 2}'
    offer = b"Connection: Upgrade, HTTP2-Settings\r\n" + upgrade + b"HTTP2-Settings: AAMAAABk\r\n"
    if chunked:
        rest = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    else:
        rest = b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    end = GET + b"Connection: close\r\n\r\n"
    answers = exchange(server.port, HEAD + offer + rest + end)
    assert status_of(answers) == 200, answers
    assert answers.count(b"HTTP/1.1 200") == 2


def test_a_client_that_does_not_read_is_cut_off(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_protocol, "WRITE_STALL_SECONDS", 0.5)
    # Far more than the kernel's buffers hold, and not all of it at once.
    body = {"model": "fake", "prompt": [4], "max_tokens": 20_000, "stream": True, "logprobs": 20}
    with start(max_model_len=30_000) as server:
        server.engine.tokens_per_event = 50
        server.engine.seconds_per_event = 0.01
        content = json.dumps(body).encode()
        head = HEAD.replace(b"chat/", b"") + b"Content-Length: %d\r\n\r\n" % len(content)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(head + content)
            server.engine.wait_until_cancelled(1)
        # A client that reads is served meanwhile.
        assert server.complete().status_code == 200


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"GET /v1/models HTTP/1.1\r\n", "no Host headers"),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: a\r\n", "2 Host headers"),
        (b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-A: b\r\nhOST: b\r\n", "2 Host headers"),
        (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\n", "no Host headers"),
        (b"GET /v1/models HTTP/1.0\r\nHost: a\r\nHost: b\r\n", "2 Host headers"),
    ],
)
def test_a_request_has_one_host(server: RunningServer, head: bytes, words: str) -> None:
    """RFC 9112, 3.2; proxies that choose another one of two can be deceived."""
    response = exchange(server.port, head + b"\r\n", b"{}")
    assert status_of(response) == 400
    assert words in error_of(response)["message"]


def test_http_1_0_needs_no_host(server: RunningServer) -> None:
    assert status_of(exchange(server.port, b"GET /liveness HTTP/1.0\r\n\r\n")) == 200
