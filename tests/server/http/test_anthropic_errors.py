"""Errors of Anthropic's routes have its form, whoever writes them; other routes keep OpenAI's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from messages_requests import HI, body, named_events, post
from running_server import RunningServer, Start, run

from vinfer.config import ServerConfig
from vinfer.errors import EngineError
from vinfer.server.model_table import ModelTable

PATHS = ("/v1/messages", "/v1/messages/count_tokens")


def check(response: Any, status: int, kind: str, *words: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    assert set(found) == {"type", "error", "request_id"}
    assert found["type"] == "error"
    assert set(found["error"]) == {"type", "message"}
    assert found["error"]["type"] == kind
    assert found["request_id"] == response.headers["x-request-id"] == response.headers["request-id"]
    for word in words:
        assert word in found["error"]["message"]
    return found


@pytest.mark.parametrize("path", PATHS)
def test_the_gate(start: Start, tmp_path: Path, path: str) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("key\n")
    keys.chmod(0o600)
    with start(api_keys_file=keys, max_body_bytes=1024) as server:
        check(server.http.post(path, json=body()), 401, "authentication_error", "x-api-key")
        server.http.headers["x-api-key"] = "key"
        check(server.http.post(path, content=b"x" * 1025, headers=JSON), 413, "request_too_large")
        check(server.http.post(path, content=b"{}"), 415, "invalid_request_error", "Content-Type")
        check(server.http.post(path, content=b"{", headers=JSON), 400, "invalid_request_error", "not JSON")
        check(server.http.get(path), 405, "invalid_request_error")
        check(server.http.get("/v1/messages/batches"), 404, "not_found_error")


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("path", PATHS)
def test_models(server: RunningServer, path: str) -> None:
    asked = {"model": "claude", "messages": HI}
    response = server.http.post(path, json={**asked, "max_tokens": 4} if path == PATHS[0] else asked)
    check(response, 404, "not_found_error", "'claude' is not served here: use one of fake")
    loading = ModelTable(["fake"])
    with run(ServerConfig(port=0), loading, FakeEngine()) as other:
        asked["model"] = "fake"
        response = other.http.post(path, json={**asked, "max_tokens": 4} if path == PATHS[0] else asked)
        check(response, 503, "overloaded_error", "not ready")
        assert response.headers["retry-after"] == "5"


@pytest.mark.parametrize("stream", [True, False])
def test_a_full_queue(server: RunningServer, stream: bool) -> None:
    server.engine.queue_full = True
    response = post(server, max_tokens=4, stream=stream)
    check(response, 429, "rate_limit_error")
    assert response.headers["retry-after"] == "1"


def test_a_long_prompt_in_words_that_agents_look_for(server: RunningServer) -> None:
    response = post(server, messages=[{"role": "user", "content": "x" * 200}], max_tokens=4)
    check(response, 400, "invalid_request_error", "prompt is too long: 2", "max_model_len is 128")


def test_a_failure(server: RunningServer) -> None:
    server.engine.fail_after_tokens = 1
    server.engine.failure = EngineError("canary of the device")
    found = check(post(server, max_tokens=4), 500, "api_error")
    assert found["request_id"] in found["error"]["message"]
    assert "canary" not in json.dumps(found)


def test_a_failure_in_a_stream(server: RunningServer) -> None:
    server.engine.fail_after_tokens = 2
    server.engine.failure = EngineError("canary of the device")
    response = post(server, max_tokens=4, stream=True)
    assert response.status_code == 200
    *events, last = named_events(response.text)
    assert events[-1]["type"] == "content_block_delta"
    assert last["type"] == "error"
    assert last["error"]["type"] == "api_error"
    assert last["request_id"] == response.headers["request-id"]
    assert "canary" not in response.text


def test_a_deadline(start: Start) -> None:
    with start(request_timeout_seconds=0.5) as server:
        server.engine.is_stuck = True
        check(post(server, max_tokens=4), 408, "timeout_error")
        (last,) = named_events(post(server, max_tokens=4, stream=True).text)
        assert last["error"]["type"] == "timeout_error"


def test_other_routes_keep_their_form(server: RunningServer) -> None:
    for response in (server.chat(model="claude"), server.http.get("/v1/messages_"), server.http.get("/v1")):
        assert set(response.json()) == {"error"}
        assert "request-id" not in response.headers
