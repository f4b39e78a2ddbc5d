"""API keys: only the three probes answer without one, however the request is disguised."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
from running_server import RunningServer, Start

from vinfer.errors import ConfigError
from vinfer.server.api_keys import read_api_keys
from vinfer.server.http.auth import PUBLIC_PATHS
from vinfer.server.route_table import ROUTES

PROTECTED = sorted({path for _, path in ROUTES} - PUBLIC_PATHS)
DISGUISES = [
    *("/", "/nothing", "//v1/models", "/v1/models/", "/v1/../metrics", "/health/../metrics", "/health/"),
    *("/%68ealth/x", "/v1/models?x=/health", "/LIVENESS", "/liveness;x", "/health%00", "/v1/models#/health"),
]


@pytest.fixture(scope="module")
def locked(start: Start, tmp_path_factory: pytest.TempPathFactory) -> object:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text("# two keys\nfirst-key\n\n  second-key  \n", encoding="utf-8")
    path.chmod(0o640)
    with start(api_keys_file=path) as server:
        yield server


@pytest.mark.parametrize("path", [*PROTECTED, *DISGUISES])
def test_no_route_answers_without_a_key(locked: RunningServer, path: str) -> None:
    for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE"):
        response = locked.http.request(method, path)
        assert response.status_code == 401, (method, path)
        assert response.headers["www-authenticate"] == "Bearer"
    error = httpx.get(locked.url + path).json()["error"]
    assert error.get("code", error["type"]) in ("invalid_api_key", "authentication_error")


@pytest.mark.parametrize(
    "host",
    ["a/health?x=", "localhost/health", "x#/health", "[::1]/liveness", "/health", "127.0.0.1:1/health?"],
)
def test_the_host_header_is_no_way_round(locked: RunningServer, host: str) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), 10) as sock:
        sock.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        assert sock.recv(64).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", sorted(PUBLIC_PATHS))
def test_probes_are_public(locked: RunningServer, path: str) -> None:
    assert locked.http.get(path).status_code == 200


def test_metrics_may_be_public_and_nothing_else_is(start: Start, tmp_path: Path) -> None:
    with start(api_keys_file=key_file(tmp_path, "a-key"), metrics_public=True) as server:
        assert "vinfer:build_info" in server.http.get("/metrics").text
        for path in (*PROTECTED, *DISGUISES):
            # A client resolves `..` before it sends a path.
            if not path.endswith("/metrics"):
                assert server.http.get(path).status_code == 401, path


@pytest.mark.parametrize(
    ("values", "status"),
    [
        (["Bearer first-key"], 200),
        (["bearer second-key"], 200),
        (["BEARER  first-key"], 200),
        ([], 401),
        (["Bearer"], 401),
        (["first-key"], 401),
        (["Basic first-key"], 401),
        (["Bearer first-ke"], 401),
        (["Bearer first-key2"], 401),
        (["Bearer # two keys"], 401),
        (["Bearer first-key", "Bearer first-key"], 401),
        (["Bearer " + "x" * 60_000], 401),
        ([b"Bearer first-k\xe9y"], 401),
    ],
)
def test_keys(locked: RunningServer, values: list[str | bytes], status: int) -> None:
    headers = [(b"authorization", value if isinstance(value, bytes) else value.encode()) for value in values]
    assert locked.http.get("/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("x-api-key", "first-key")], 200),
        ([("X-Api-Key", "second-key")], 200),
        ([("x-api-key", "first-key"), ("authorization", "Bearer first-key")], 200),
        ([("x-api-key", "first-key"), ("authorization", "Bearer second-key")], 401),
        ([("x-api-key", "first-key"), ("authorization", "Basic first-key")], 401),
        ([("x-api-key", "first-key"), ("x-api-key", "first-key")], 401),
        ([("x-api-key", "Bearer first-key")], 401),
        ([("x-api-key", "third-key")], 401),
        ([("x-api-key", "")], 401),
        ([("x-api-key", ""), ("authorization", "Bearer first-key")], 401),
    ],
)
def test_keys_as_anthropics_clients_send_them(
    locked: RunningServer, headers: list[tuple[str, str]], status: int
) -> None:
    for path in ("/v1/models", "/metrics"):
        assert locked.http.get(path, headers=headers).status_code == status


def test_a_key_is_one_tenant_by_either_header(locked: RunningServer) -> None:
    """Requests with the same key share pages, whatever header it came in."""
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    locked.engine.reset()
    for headers in ({"x-api-key": "first-key"}, {"authorization": "Bearer first-key"}):
        assert locked.http.post("/v1/messages", json=body, headers=headers).status_code == 200
    one, two = locked.engine.requests
    assert one.tenant == two.tenant != ""


def test_a_key_in_the_query_is_none(locked: RunningServer) -> None:
    assert locked.http.get("/v1/models?api_key=first-key&key=first-key").status_code == 401


@pytest.mark.parametrize("content", [b"", b"# only comments\n\n", b"\xff\xfe"])
def test_a_key_file_without_keys_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.txt"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"server\.api_keys_file"):
        read_api_keys(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_api_keys(tmp_path / "missing.txt")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o601, 0o777])
def test_a_key_file_that_everyone_may_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, "a-key\n", mode)
    with pytest.raises(ConfigError, match=rf"has mode {mode:04o}.*chmod o-rwx"):
        read_api_keys(path)


def test_what_follows_a_key(tmp_path: Path) -> None:
    path = key_file(tmp_path, "one\n two  name=batch-1\tpriority=-3..7\nthree priority=5..5\n")
    one, two, three = read_api_keys(path)
    assert (one.name, one.priorities) == (one.digest.hex()[:8], None)
    assert (two.name, two.priorities) == ("batch-1", (-3, 7))
    assert three.priorities == (5, 5)
    assert read_api_keys(None) == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("secret words", "line 2.*a key has no spaces"),
        ("secret name=", "line 2"),
        ("secret name=a/b", "line 2"),
        ("secret priority=high", "line 2"),
        ("secret priority=7..3", r"line 2: priority is 7\.\.3"),
        ("secret priority=0..9999999999", "line 2"),
        ("first", "has a key twice"),
        ("secret name=me", "has a name twice"),
    ],
)
def test_a_wrong_line_is_named_without_its_key(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_api_keys(key_file(tmp_path, f"first name=me\n{line}\n"))
    assert "secret" not in caught.value.message


def key_file(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys.txt"
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def send(server: RunningServer, key: str, **fields: object) -> httpx.Response:
    return server.http.post(
        "/v1/completions",
        json={"model": "fake", "prompt": [4], "max_tokens": 1, **fields},
        headers={"authorization": f"Bearer {key}"},
    )


@pytest.mark.parametrize(
    ("key", "sent", "priority"),
    [
        ("free", None, 0),
        ("free", 0, 0),
        ("free", 9, 9),
        ("free", -1, None),
        ("late", None, 5),
        ("late", 10, 10),
        ("late", 0, None),
        ("late", 11, None),
        ("first", -10, -10),
        ("first", -11, None),
        ("first", 1, None),
    ],
)
def test_priority_only_within_the_range_of_the_key(
    start: Start, tmp_path: Path, key: str, sent: int | None, priority: int | None
) -> None:
    path = key_file(tmp_path, "free\nlate priority=5..10\nfirst priority=-10..0\n")
    with start(api_keys_file=path) as server:
        response = send(server, key, **({} if sent is None else {"priority": sent}))
        if priority is None:
            assert response.status_code == 400
            error = response.json()["error"]
            assert error["param"] == "priority"
            assert "this API key may send" in error["message"]
        else:
            assert response.status_code == 200
            assert server.engine.requests[-1].priority == priority


def test_a_single_key_may_send_any_priority(start: Start, tmp_path: Path) -> None:
    with start(api_keys_file=key_file(tmp_path, "only\n")) as server:
        assert send(server, "only", priority=-7).status_code == 200
