"""A follower's HTTP: the probes by phase, no other route, and signals that do not end it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import httpx
import pytest

from vinfer.config import ServerConfig
from vinfer.server.http.auth import PUBLIC_PATHS
from vinfer.server.http.probes import ProbeServer
from vinfer.server.http.serve import bind


@pytest.fixture
def probes() -> Iterator[tuple[ProbeServer, httpx.Client]]:
    sock = bind("127.0.0.1", 0)
    server = ProbeServer(ServerConfig(), sock)
    thread = threading.Thread(target=server.serve_until_end, daemon=True)
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", timeout=20) as http:
        yield server, http
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def test_the_probes_tell_the_phase(probes: tuple[ProbeServer, httpx.Client]) -> None:
    server, http = probes
    assert http.get("/liveness").json() == {"status": "alive"}
    assert (http.get("/readiness").status_code, http.get("/readiness").json()) == (503, {"phase": "joining"})
    server.has_joined()
    assert (http.get("/health").status_code, http.get("/health").json()) == (503, {"status": "loading"})
    server.be_ready()
    assert (http.get("/readiness").status_code, http.get("/readiness").json()) == (200, {"phase": "ready"})
    assert (http.get("/health").status_code, http.get("/health").json()) == (200, {"status": "ok"})
    assert {http.get(path).status_code for path in PUBLIC_PATHS} == {200}


def test_there_is_no_other_route(probes: tuple[ProbeServer, httpx.Client]) -> None:
    _, http = probes
    for path in ("/", "/metrics", "/v1/models", "/v1/completions", "/openapi.json", "/version"):
        assert http.get(path).status_code == 404
    assert http.post("/readiness").status_code == 405


def test_a_follower_that_has_joined_goes_on_until_it_is_told_twice(
    probes: tuple[ProbeServer, httpx.Client],
) -> None:
    server, http = probes
    server.be_ready()
    server.handle_exit(signal.SIGTERM, None)
    assert http.get("/readiness").status_code == 200
    assert not server.should_exit
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
    assert server.exit_code == 143


def test_one_that_still_waits_for_the_others_ends_at_once(
    probes: tuple[ProbeServer, httpx.Client],
) -> None:
    server, _ = probes
    server.handle_exit(signal.SIGINT, None)
    assert server.should_exit
    assert server.exit_code == 130
