"""Large bodies: never parsed on the event loop, refused early, and limited in number."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from contract import BODIES
from running_server import RunningServer, Start, wait_until

from vinfer.errors import QueueFullError, RequestError
from vinfer.server.http import body as module
from vinfer.server.http.body import INLINE_PARSE_BYTES, MAX_CONTAINERS, MAX_VALUES
from vinfer.server.intake import Intake

HI = {"role": "user", "content": "hi"}
N = 100_000
CHAT = "/v1/chat/completions"
# Each is about 3 MB; some took the event loop, or a worker that holds the interpreter, for up to 20 s.
COSTLY: dict[str, tuple[str, dict[str, Any], str]] = {
    "messages": (CHAT, {"messages": [HI] * N}, "more than 65536 arrays and objects"),
    "fewer messages": (CHAT, {"messages": [HI] * 60_000}, "messages has 60000 items"),
    "wrong messages": (CHAT, {"messages": [{"role": "robot"}] * 60_000}, "messages has 60000 items"),
    "arrays": (CHAT, {"messages": [[]] * 1_000_000}, "more than 65536 arrays and objects"),
    "parts": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 60_000}]},
        "messages[0].content has 60000 items",
    ),
    "calls": (
        CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}] * 60_000}]},
        "messages[0].tool_calls has 60000 items",
    ),
    "tools": (CHAT, {"messages": [HI], "tools": [{"type": "function"}] * 60_000}, "tools has 60000 items"),
    "stops": (CHAT, {"messages": [HI], "stop": ["x"] * 700_000}, "stop has 700000 items"),
    "user": (CHAT, {"messages": [HI], "user": [1] * 1_000_000}, "user has no effect"),
    "longer user": (CHAT, {"messages": [HI], "user": [1] * 1_500_000}, "more than 1048576 values"),
    "text": (CHAT, {"messages": [{"role": "user", "content": "x" * 3_000_000}]}, "at least"),
    "items": ("/v1/responses", {"input": [HI] * 60_000}, "input has 60000 items"),
    "items' parts": (
        "/v1/responses",
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 60_000}]},
        "input[0].content has 60000 items",
    ),
    "reasoning": (
        "/v1/responses",
        {"input": [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": "x"}] * 60_000}]},
        "input[0].content has 60000 items",
    ),
    "prompts": ("/v1/completions", {"prompt": ["x"] * 700_000}, "prompt has 700000 prompts"),
    "token ids": ("/v1/completions", {"prompt": [4] * 1_000_000}, "prompt has 1000000 tokens"),
    "prompt": ("/v1/completions", {"prompt": "x" * 3_000_000}, "prompt has 3000000 characters"),
    "inputs": ("/v1/embeddings", {"input": ["x"] * 700_000}, "input has 700000 prompts"),
    "input": ("/v1/embeddings", {"input": "x" * 3_000_000}, "input has 3000000 characters"),
    "counted text": (
        "/v1/count_tokens",
        {"conversation": "x" * 3_000_000},
        "conversation has 3000000 characters",
    ),
    "counted": ("/v1/count_tokens", {"conversation": [HI] * 60_000}, "conversation has 60000 items"),
    "tokenized": ("/tokenize", {"messages": [HI] * 60_000}, "messages has 60000 items"),
}


@pytest.fixture(scope="module")
def default_server(start: Start) -> Iterator[RunningServer]:
    with start() as server:
        yield server


def written(body: dict[str, Any]) -> bytes:
    raw = json.dumps({"model": "fake", **body}, separators=(",", ":")).encode()
    assert len(raw) < server_limit()
    return raw


def post(server: RunningServer, path: str, body: dict[str, Any]) -> httpx.Response:
    return send(server, path, written(body))


def send(server: RunningServer, path: str, raw: bytes) -> httpx.Response:
    """Send bytes that are made beforehand, past the client that checks answers."""
    return httpx.post(
        server.url + path, content=raw, headers={"content-type": "application/json"}, timeout=60
    )


def server_limit() -> int:
    return 4 * 2**20


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_body_is_refused_before_it_costs(
    default_server: RunningServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of 100,000 messages once stopped the event loop for seven seconds."""
    path, body, words = COSTLY[name]

    def tokenize(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenized")

    model = default_server.models.serving("fake")
    for method in ("encode", "encode_prompt"):
        monkeypatch.setattr(model.tokenizer, method, tokenize)
    response = post(default_server, path, body)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize("path", BODIES)
def test_no_route_parses_a_large_body_on_the_event_loop(
    start: Start, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    parse = module.parse_json_object

    def noted(raw: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return parse(raw)

    monkeypatch.setattr(module, "parse_json_object", noted)
    with start(unknown_fields="ignore") as server:
        for padding in (0, INLINE_PARSE_BYTES):
            post(server, path, {**BODIES[path][0], "padding": "x" * padding})
    small, large = threads
    assert "vinfer" not in small
    assert large.startswith("vinfer-parser")


@pytest.mark.parametrize("name", ["fewer messages", "arrays", "token ids", "text"])
def test_probes_answer_beside_large_bodies(default_server: RunningServer, name: str) -> None:
    path, body, _ = COSTLY[name]
    raw = written(body)
    seconds = []
    with ThreadPoolExecutor(4) as pool, httpx.Client(base_url=default_server.url) as http:
        sent = [pool.submit(send, default_server, path, raw) for _ in range(4)]
        while not all(each.done() for each in sent):
            before = time.monotonic()
            assert http.get("/liveness").status_code == 200
            seconds.append(time.monotonic() - before)
    assert [each.result().status_code for each in sent] == [400] * 4
    # Two seconds leave room for a busy machine; it was 54 s.
    assert max(seconds) < 2


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a":[' + b"1," * 900_000 + b"1]}", id="numbers"),
        pytest.param(b'{"a":[' + b"[]," * 100 + b"1," * 900_000 + b"1]}", id="numbers and arrays"),
    ],
)
def test_numbers_do_not_hold_the_interpreter(body: bytes) -> None:
    """JSON's C code makes a million numbers without letting another thread go on."""
    is_over = threading.Event()
    turns = 0

    def take_turns() -> None:
        nonlocal turns
        while not is_over.is_set():
            turns += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=take_turns)
    thread.start()
    try:
        with contextlib.suppress(RequestError):
            module.parse_json_object(body)
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert turns > 30


def test_a_long_array_of_numbers_is_looked_through_in_pieces() -> None:
    """One search through them all would hold the interpreter for 40 ms."""
    numbers = "1," * 1_000_000
    assert max(len(piece) for piece in module.STRINGS_AND_BRACKETS.findall(f"[{numbers}1]")) <= 4096


def test_a_container_limit_counts_arrays_and_objects() -> None:
    inner = ",".join(["[]"] * (MAX_CONTAINERS - 2))
    assert module.parse_json_object(f'{{"a":[{inner}]}}'.encode())
    with pytest.raises(Exception, match="more than 65536 arrays and objects"):
        module.parse_json_object(f'{{"a":[{inner},{{}}]}}'.encode())


def test_a_value_limit_does_not_count_text() -> None:
    assert module.parse_json_object(b'{"a":"' + b"," * (MAX_VALUES + 1) + b'"}')
    numbers = b"1," * (MAX_VALUES - 1)
    assert module.parse_json_object(b'{"a":[' + numbers + b"1]}")
    with pytest.raises(Exception, match="more than 1048576 values"):
        module.parse_json_object(b'{"a":[' + numbers + b'1],"b":1}')


class Body:
    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.num_body_bytes = 0


def test_bytes_in_preparation_are_limited() -> None:
    intake = Intake(100)
    one, two, three = Body("a"), Body("b"), Body("a")
    intake.take(one, 60)
    intake.take(two, 40)
    with pytest.raises(QueueFullError, match=r"preparing 100 bytes.*server\.max_preparing_bytes is 100"):
        intake.take(three, 1)
    intake.release(one)
    intake.release(one)
    intake.take(three, 60)
    assert intake.num_bytes == 100


def test_the_only_body_may_be_as_long_as_a_body_may_be() -> None:
    intake = Intake(100)
    intake.has_several_tenants = True
    one = Body("a")
    for _ in range(3):
        intake.take(one, 100)
    with pytest.raises(QueueFullError):
        intake.take(Body("b"), 1)


def test_one_of_several_tenants_has_half_of_them() -> None:
    intake = Intake(100)
    intake.has_several_tenants = True
    bodies = [Body("a"), Body("a"), Body("b")]
    intake.take(bodies[0], 30)
    intake.take(bodies[1], 20)
    with pytest.raises(QueueFullError):
        intake.take(bodies[1], 1)
    intake.take(bodies[2], 50)
    for body in bodies:
        intake.release(body)
    assert intake.num_bytes == 0


def test_a_body_beyond_the_limit_gets_a_429_and_later_ones_are_served(start: Start) -> None:
    with start(max_preparing_bytes=300_000, max_body_bytes=200_000) as server:
        server.engine.is_stuck = True
        sock = server_socket_with_part_of_a_body(server, 180_000)
        intake = server.app.state.services.intake
        wait_until(lambda: intake.num_bytes >= 180_000)
        refused = post(server, "/v1/completions", {"prompt": [4], "user": "x" * 150_000})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        sock.close()
        wait_until(lambda: intake.num_bytes == 0)
        server.engine.reset()
        # Counted until its prompt is with the engine, not until its answer ends.
        server.engine.is_stuck = True
        with server.http.stream(
            "POST", "/v1/completions", json={"model": "fake", "prompt": [4], "stream": True}
        ):
            server.engine.wait_until_submitted(1)
            wait_until(lambda: intake.num_bytes == 0)


def server_socket_with_part_of_a_body(server: RunningServer, num_bytes: int) -> Any:
    sock = socket.create_connection(("127.0.0.1", server.port), 10)
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {num_bytes + 1}\r\n\r\n"
    )
    sock.sendall(head.encode() + b"x" * num_bytes)
    return sock


def test_nothing_is_tokenized_for_a_queue_without_room(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenize(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenized")

    for method in ("encode", "encode_prompt"):
        monkeypatch.setattr(server.models.serving("fake").tokenizer, method, tokenize)
    server.engine.is_full_for = ""
    for path, body in (
        (CHAT, {"messages": [HI]}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/embeddings", {"input": "a"}),
    ):
        response = server.http.post(path, json={"model": "fake", **body})
        assert response.status_code == 429, response.text
        assert response.headers["retry-after"] == "122"
        assert response.headers["retry-after-ms"] == "121200"
