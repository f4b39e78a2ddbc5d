"""`server.cors_origins`: which web pages may call the API from a browser; none by default."""

from __future__ import annotations

from pathlib import Path

import pytest
from running_server import RunningServer, Start

from vinfer.config import ServerConfig
from vinfer.errors import ConfigError
from vinfer.server.app import EXPOSED_HEADERS

PAGE = "https://chat.example.org"
ASKS = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}


def test_no_page_by_default(server: RunningServer) -> None:
    assert server.http.options("/v1/chat/completions", headers=ASKS).status_code == 405
    assert "access-control-allow-origin" not in server.http.get("/v1/models", headers=ASKS).headers


@pytest.mark.parametrize("origins", [[PAGE], ["*"]])
def test_a_page_that_may(start: Start, tmp_path: Path, origins: list[str]) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    with start(cors_origins=origins, api_keys_file=keys) as server:
        # A preflight has no key.
        preflight = server.http.build_request("OPTIONS", "/v1/chat/completions", headers=ASKS)
        answer = server.http.send(preflight, stream=True)
        answer.close()
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] in (PAGE, "*")
        allowed = answer.headers["access-control-allow-headers"].lower()
        assert "authorization" in allowed
        assert "x-stainless-os" in allowed
        # Scripts can read errors too.
        for path, key, status in [("/v1/models", "secret", 200), ("/v1/models", "wrong", 401)]:
            found = server.http.get(path, headers={"Origin": PAGE, "Authorization": f"Bearer {key}"})
            assert found.status_code == status
            assert found.headers["access-control-allow-origin"] in (PAGE, "*")
            exposed = found.headers["access-control-expose-headers"].lower()
            assert all(name in exposed for name in EXPOSED_HEADERS)


def test_another_page(start: Start) -> None:
    with start(cors_origins=[PAGE]) as server:
        found = server.http.get("/v1/models", headers={"Origin": "https://evil.example.org"})
        assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize("origin", ["chat.example.org", f"{PAGE}/", f"{PAGE}/a", "", "https://a b"])
def test_what_is_no_origin(origin: str) -> None:
    with pytest.raises((ConfigError, ValueError), match="origin"):
        ServerConfig(cors_origins=[origin])


@pytest.mark.parametrize(
    "origin", ["*", PAGE, "http://localhost:3000", "http://[::1]:80", "app://obsidian.md"]
)
def test_what_is_one(origin: str) -> None:
    assert ServerConfig(cors_origins=[origin]).cors_origins == [origin]


def test_connections_outlive_those_of_clients() -> None:
    """Common pools keep a connection for up to 90 seconds; the side that closes first must be the client."""
    assert ServerConfig().keep_alive_seconds > 90
