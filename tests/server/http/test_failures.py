"""Errors have OpenAI's form and the right status and headers, and nothing leaks."""

from __future__ import annotations

import json
import logging
import re
import time
from typing import Any

import pytest
from fake_engine import FakeEngine, served_model
from running_server import RunningServer, Start, run, wait_until

from vinfer.config import ServerConfig
from vinfer.errors import BundleError, EngineError
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

LEAK = re.compile(r"0x[0-9a-f]{6,}|Traceback|File \"|\.py\b|/vinfer/|canary")


def error_of(response: Any) -> dict[str, Any]:
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error.pop("request_id") == response.headers["x-request-id"]
    assert not LEAK.search(response.text)
    return error


def test_unknown_model(server: RunningServer) -> None:
    for response in (
        server.chat(model="gpt"),
        server.complete(model="gpt"),
        server.http.get("/v1/models/gpt"),
    ):
        assert response.status_code == 404
        assert error_of(response) == {
            "message": "model 'gpt' is not served here: use one of fake",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/models/", "/docs"])
def test_unknown_route(server: RunningServer, path: str) -> None:
    response = server.http.get(path)
    assert response.status_code == 404
    assert error_of(response)["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/readiness", "GET, HEAD"),
    ],
)
def test_wrong_method(server: RunningServer, method: str, path: str, allowed: str) -> None:
    response = server.http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert error_of(response)["code"] == "method_not_allowed"


@pytest.mark.parametrize("stream", [True, False])
def test_full_queue(server: RunningServer, stream: bool) -> None:
    server.engine.queue_full = True
    response = server.chat(stream=stream)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.headers["retry-after-ms"] == "1000"
    assert "x-should-retry" not in response.headers
    assert error_of(response)["code"] == "queue_full"


def test_a_queue_that_fills_up_takes_all_choices_or_none(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = server.engine.submit

    def submit_two(request: Any) -> Any:
        server.engine.queue_full = len(server.engine.requests) >= 2
        return submit(request)

    monkeypatch.setattr(server.engine, "submit", submit_two)
    assert server.chat(n=3).status_code == 429
    assert server.engine.cancelled == [request.id for request in server.engine.requests]
    assert len(server.engine.requests) == 2


@pytest.mark.parametrize("failure", [EngineError("canary of the device"), KeyError("canary in a prompt")])
def test_engine_failure(server: RunningServer, failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.fail_after_tokens = 2
    server.engine.failure = failure
    response = server.chat(n=2)
    assert response.status_code == 500
    request_id = response.headers["x-request-id"]
    assert request_id in error_of(response)["message"]
    assert request_id in caplog.text
    # Our own messages are written to be read; another exception's text may quote anything.
    assert ("canary" in caplog.text) == isinstance(failure, EngineError)
    server.engine.reset()
    assert server.chat().status_code == 200


def test_engine_failure_in_a_stream(server: RunningServer) -> None:
    server.engine.fail_after_tokens = 2
    server.engine.failure = EngineError("canary of the device")
    response = server.chat(stream=True, max_tokens=5)
    assert response.status_code == 200
    *_, text, error, done = response.text.strip().split("\n\n")
    assert json.loads(text.removeprefix("data: "))["choices"][0]["delta"]["content"]
    assert response.headers["x-request-id"] in json.loads(error.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"
    assert not LEAK.search(response.text)


def test_deadline(start: Start) -> None:
    with start(request_timeout_seconds=0.3) as server:
        server.engine.is_stuck = True
        response = server.chat()
        assert response.status_code == 408
        assert error_of(response)["code"] == "request_timeout"
        stream = server.chat(stream=True).text.strip().split("\n\n")
        assert json.loads(stream[-2].removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert stream[-1] == "data: [DONE]"
        # The client gets the last bytes before the server has finished its work.
        server.engine.wait_until_cancelled(2)


def test_a_client_s_own_deadline(server: RunningServer) -> None:
    """A gateway that stops waiting should not leave work behind."""
    server.engine.is_stuck = True
    before = time.monotonic()
    body = {"model": "fake", "prompt": [4, 5]}
    headers = {"x-request-deadline": f"{time.time() + 0.4:.3f}"}
    for path, fields in (
        ("/v1/completions", body),
        ("/v1/embeddings", {"model": "fake", "input": [4]}),
        ("/v1/completions", {**body, "stream": True}),
    ):
        headers = {"x-request-deadline": f"{time.time() + 0.4:.3f}"}
        response = server.http.post(path, json=fields, headers=headers)
        if "stream" in fields:
            assert '"code":"request_timeout"' in response.text
        else:
            assert response.status_code == 408
            assert "X-Request-Deadline" in error_of(response)["message"]
    assert time.monotonic() - before < 10
    server.engine.wait_until_cancelled(3)


@pytest.mark.parametrize(
    ("sent", "status"), [("1.5", 408), ("soon", 400), ("-1", 400), ("9999999999", 200), ("1e12", 400)]
)
def test_deadlines_that_make_no_sense(server: RunningServer, sent: str, status: int) -> None:
    response = server.http.get("/v1/models", headers={"x-request-deadline": sent})
    assert response.status_code == status
    if status != 200:
        assert "X-Request-Deadline" in error_of(response)["message"]


@pytest.mark.parametrize("ping_seconds", [0.05, 0])
def test_pings_while_nothing_comes(start: Start, ping_seconds: float) -> None:
    with start(ping_seconds=ping_seconds) as server:
        server.engine.seconds_per_event = 0.4
        text = server.chat(stream=True, max_tokens=1).text
        silence, _, rest = text.partition("data: ")
        assert set(silence) == ({"\n"} if ping_seconds else set())
        assert len(silence) >= (4 if ping_seconds else 0)
        assert rest.endswith("data: [DONE]\n\n")


def test_a_client_that_strips_white_space_survives_pings(start: Start) -> None:
    """VLLM's benchmark strips what each network read returns, before it looks for the end of an event."""
    with start(ping_seconds=0.05) as server:
        server.engine.seconds_per_event = 0.2
        body = {"model": "fake", "prompt": [4, 5], "max_tokens": 4, "stream": True}
        buffer, events = "", []
        with server.http.stream("POST", "/v1/completions", json=body) as response:
            for data in response.iter_raw():
                for piece in data.decode().strip().split("\n\n"):
                    buffer += piece
                    if buffer.startswith("data: {") or buffer == "data: [DONE]":
                        events.append(buffer)
                        buffer = ""
        assert buffer == ""
        assert len(events) == 5


def test_before_the_models_are_ready(tokenizer: Tokenizer) -> None:
    engine = FakeEngine()
    models = ModelTable(["fake", "other"])
    with run(ServerConfig(port=0), models, engine) as server:
        models.report("fake", "compiling", 3, 12, 90.04)
        ready = server.http.get("/readiness")
        assert ready.status_code == 503
        elapsed = ready.json()["models"][0]["elapsed_seconds"]
        assert 0 <= elapsed < 60
        of_fake = {"elapsed_seconds": elapsed, "expected_seconds": 90.0}
        of_other = {"elapsed_seconds": None, "expected_seconds": None}
        assert ready.json() == {
            "phase": "compiling",
            "done": 3,
            "total": 12,
            "models": [
                {"name": "fake", "phase": "compiling", "done": 3, "total": 12, **of_fake},
                {"name": "other", "phase": "waiting", "done": 0, "total": 0, **of_other},
            ],
        }
        assert server.http.get("/liveness").status_code == 200
        assert server.http.get("/health").status_code == 503
        refused = server.chat()
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert error_of(refused)["code"] == "not_ready"
        assert server.chat(model="gpt").status_code == 404
        assert server.http.get("/v1/models").json()["data"] == []

        models.serve(served_model(engine, tokenizer))
        assert server.chat().status_code == 200
        assert server.http.get("/readiness").json()["phase"] == "waiting"
        models.serve(served_model(engine, tokenizer, name="other"))
        assert server.http.get("/readiness").status_code == 200
        assert server.http.get("/health").json() == {"status": "ok"}
        listed = server.http.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["fake", "other"]


def test_models(server: RunningServer) -> None:
    assert server.http.get("/v1/models/fake").json() == {
        "id": "fake",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "easydel",
        "permission": [],
        "root": "fake",
        "max_model_len": 128,
        "parity_verdict": "unverified",
        "parity": None,
    }


def test_a_model_that_does_not_load_ends_the_server() -> None:
    models = ModelTable(["fake"])
    with run(ServerConfig(port=0), models, FakeEngine()) as server:
        models.fail("fake", BundleError("/secret/path is corrupt"))
        wait_until(lambda: bool(server.exit_codes))
    assert server.exit_codes == [BundleError.exit_code]


def test_a_dead_engine_is_seen_and_then_ends_the_server(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vinfer.server.http.serve.DEAD_ENGINE_SECONDS", 0.5)
    with start() as server:
        server.engine.is_alive = False
        assert server.http.get("/health").status_code == 503
        assert server.http.get("/readiness").json()["phase"] == "failed"
        assert server.chat().status_code == 503
        wait_until(lambda: bool(server.exit_codes))
    assert server.exit_codes == [1]


@pytest.mark.parametrize(
    ("sent", "is_taken"),
    [
        (b"trace-1.2:3_A", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"a b", False),
        (b"a\tb", False),
        ("é".encode(), False),
        (b"", False),
    ],
)
def test_request_ids(server: RunningServer, sent: bytes, is_taken: bool) -> None:
    given = server.http.get("/v1/models", headers=[(b"x-request-id", sent)]).headers["x-request-id"]
    assert (given.encode() == sent) == is_taken
    assert re.fullmatch(r"[\w.:-]{1,128}", given)


def test_the_log_holds_no_text_of_the_clients(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.chat(messages=[{"role": "user", "content": "canary prompt"}])
    server.chat(canary_field="canary value")
    server.complete(prompt="canary prompt", stream=True)
    server.http.get(
        "/canary?canary=canary", headers={"authorization": "Bearer canary-key", "x-request-id": "a b"}
    )
    server.http.post("/v1/completions", content=b'{"canary', headers={"content-type": "application/json"})

    def ours() -> list[logging.LogRecord]:
        return [record for record in caplog.records if not record.name.startswith("http")]

    def access() -> list[list[str]]:
        lines = [record.getMessage() for record in ours() if record.name == "vinfer.access"]
        return sorted(line.split()[:3] for line in lines)

    # The line is written after the client gets its answer.
    wait_until(lambda: len(access()) == 5)
    assert access() == [
        ["GET", "other", "404"],
        ["POST", "/v1/chat/completions", "200"],
        ["POST", "/v1/chat/completions", "400"],
        ["POST", "/v1/completions", "200"],
        ["POST", "/v1/completions", "400"],
    ]
    assert "canary" not in "\n".join(record.getMessage() for record in ours())
