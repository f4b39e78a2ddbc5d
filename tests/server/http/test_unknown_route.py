"""A 404 helps: it says what was asked for and what may have been meant."""

from __future__ import annotations

import pytest
from running_server import RunningServer

from vinfer.server.route_table import ROUTES


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/v1/chat/completion", "POST /v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/chat/completions", "POST /v1/chat/completions"),
        ("POST", "/api/v1/embeddings", "POST /v1/embeddings"),
        ("GET", "/v1/model", "GET /v1/models"),
        ("GET", "/healthz", "GET /health"),
        ("GET", "/v1/", None),
        ("POST", "/api/generate", None),
    ],
)
def test_near_routes(server: RunningServer, method: str, path: str, meant: str | None) -> None:
    response = server.http.request(method, path)
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert message.startswith(f"{method} '{path}' is not a route: ")
    assert message.endswith("GET /openapi.json lists all")
    if meant is not None:
        assert f"did you mean {meant}" in message


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES if "{" not in path and path != "/"}))
def test_every_route_is_found_one_letter_off(server: RunningServer, path: str) -> None:
    message = server.http.get(f"{path}x").json()["error"]["message"]
    assert f" {path}" in message.partition("did you mean")[2]


def test_the_path_is_shown_safely(server: RunningServer) -> None:
    message = server.http.get("/a%0d%0ab%1b" + "c" * 500).json()["error"]["message"]
    assert "\\r\\nb\\x1b" in message
    assert len(message) < 250


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_root_answers(server: RunningServer, method: str) -> None:
    response = server.http.request(method, "/")
    assert response.status_code == 200
    if method == "GET":
        for path in (response.json()["models"], response.json()["documentation"]):
            assert server.http.get(path).status_code == 200


def test_head_of_every_get_route(server: RunningServer) -> None:
    for method, path in ROUTES:
        if method == "GET":
            whole = path.replace("{id:path}", "fake")
            assert server.http.head(whole).status_code == server.http.get(whole).status_code
