"""The page over HTTP: when it is there, its headers, and which host names get an answer on loopback."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from running_server import RunningServer, Start

from vinfer.config import ServerConfig
from vinfer.errors import HostError
from vinfer.server.http.browser import check_host, serves_page
from vinfer.server.page import read_page

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
NAMES = sorted(read_page())


@pytest.fixture(scope="module")
def locked(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("keys") / "keys.txt"
    path.write_text("a-key\n")
    path.chmod(0o600)
    with start(api_keys_file=path) as server:
        yield server


def ask(server: RunningServer, path: str = "/", method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, server.url + path, headers={**HTML, **headers})


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        (HTML["Accept"], True),
        ("text/html", True),
        ("TEXT/HTML;q=0.1", True),
        ("application/json, text/html ; level=1", True),
        ("*/*", False),
        ("", False),
        ("application/json", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=0.000", False),
        ("text/htmlx", False),
    ],
)
def test_only_who_asks_for_html_gets_it(server: RunningServer, accept: str, is_page: bool) -> None:
    for method in ("GET", "HEAD"):
        response = ask(server, method=method, Accept=accept)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/html" if is_page else "application/json")
        assert response.headers["vary"] == "Accept"
        assert bool(response.content) is (method == "GET")


def test_the_policy(server: RunningServer) -> None:
    for path in ("/", *(f"/page/{name}" for name in NAMES)):
        headers = ask(server, path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", NAMES)
def test_types_and_tags(server: RunningServer, name: str) -> None:
    path = "/" if name == "index.html" else f"/page/{name}"
    first = ask(server, path)
    kind = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
    assert first.headers["content-type"].startswith(kind[name.rpartition(".")[2]])
    tag = first.headers["etag"]
    again = ask(server, path, **{"If-None-Match": f'"other", W/{tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert "content-security-policy" in again.headers
    assert ask(server, path, **{"If-None-Match": '"other"'}).content == first.content


@pytest.mark.parametrize("path", ["/page/", "/page/none.js", "/page/../app.py", "/page/%2e%2e/files.py"])
def test_nothing_else_lies_there(server: RunningServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert sock.recv(64).startswith(b"HTTP/1.1 404 ")


def test_nothing_from_outside_and_no_inline_code() -> None:
    """What the policy would refuse, or leave to a browser that knows no policy."""
    for name, file in read_page().items():
        text = file.content.decode()
        if name == "icon.svg":
            text = text.replace("http://www.w3.org/2000/svg", "")
        if name.endswith((".html", ".css", ".svg")):
            assert not re.search(r"https?:|//\w|@import|url\(", text), name
            assert not re.search(r"<script(?![^>]* src=)|<style| style=| on[a-z]+=", text), name
        else:
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function",
                text,
            ), name
            for source in re.findall(r"^import .* from \"(.+)\";$|import\(", text, re.MULTILINE):
                assert source.removeprefix("./") in NAMES, (name, source)


@pytest.mark.parametrize(
    ("host", "page", "expected"),
    [
        ("127.0.0.1", None, True),
        ("localhost", None, True),
        ("::1", None, True),
        ("127.0.0.1", False, False),
        ("0.0.0.0", None, False),
        ("::", None, False),
        ("192.168.1.2", None, False),
        ("0.0.0.0", True, True),
    ],
)
def test_on_for_loopback_and_elsewhere_if_asked(host: str, page: bool | None, expected: bool) -> None:
    assert serves_page(ServerConfig(host=host, page=page)) is expected


def test_off(start: Start) -> None:
    with start(page=False) as server:
        assert ask(server).json()["documentation"] == "/openapi.json"
        assert ask(server, "/page/app.js").status_code == 404


def test_beyond_loopback(start: Start) -> None:
    """The machine's names are not known there, so any will do; keys protect the API."""
    with start(host="0.0.0.0") as server:
        assert ask(server).headers["content-type"] == "application/json"
    with start(host="0.0.0.0", page=True) as server:
        assert ask(server, Host="gpu-7.example.org").headers["content-type"].startswith("text/html")


def test_the_page_needs_no_key_and_all_else_does(locked: RunningServer) -> None:
    assert ask(locked).status_code == 200
    assert ask(locked, "/page/app.js").status_code == 200
    assert ask(locked, method="POST").status_code == 401
    assert ask(locked, "/page/app.js", method="POST").status_code == 401
    for path in ("/metrics", "/v1/models", "/page", "//", "/v1/capabilities"):
        assert ask(locked, path).status_code == 401


FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "10.0.0.1",
    "127.0.0.1.evil.example",
]
OWN = ["localhost", "localhost:1", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000", "a.localhost", "LOCALHOST"]
ODD = ["", "localhost/x", "localhost@evil.example", "evil.example@localhost", "[::1", "localhost?", "x:y:z"]


@pytest.mark.parametrize("host", [*FOREIGN, *ODD])
def test_a_foreign_name_gets_no_answer_on_loopback(server: RunningServer, host: str) -> None:
    """A site whose name leads to 127.0.0.1 could read the answers otherwise."""
    for path in ("/", "/page/app.js", "/v1/models", "/metrics", "/nothing"):
        response = ask(server, path, Host=host)
        assert response.status_code == 403, (path, host)
        error = response.json()["error"]
        assert error["code"] == "host_not_allowed"
        assert "server.cors_origins" in error["message"]
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={"Host": host})
    assert response.status_code == 403
    assert server.engine.requests == []
    # Probes tell nothing that matters.
    assert ask(server, "/liveness", Host=host).status_code == 200


@pytest.mark.parametrize("host", OWN)
def test_own_names(server: RunningServer, host: str) -> None:
    assert ask(server, Host=host).status_code == 200
    assert ask(server, "/v1/models", Host=host).status_code == 200


def test_no_host_of_http_1_0(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as sock:
        sock.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert sock.recv(64).startswith(b"HTTP/1.1 200 ")


def test_with_keys_a_proxy_may_keep_the_name(locked: RunningServer) -> None:
    key = {"Authorization": "Bearer a-key", "Host": "llm.example.org"}
    assert ask(locked, "/v1/models", **key).status_code == 200
    assert ask(locked, "/", **key).status_code == 403


@pytest.mark.parametrize(
    ("origins", "host", "is_allowed"),
    [
        (["https://llm.example.org"], "llm.example.org", True),
        (["https://llm.example.org"], "LLM.example.org:443", True),
        (["https://llm.example.org"], "example.org", False),
        (["*"], "anything", True),
        ([], "llm.example.org", False),
    ],
)
def test_origins_are_names_too(origins: list[str], host: str, is_allowed: bool) -> None:
    scope: dict[str, Any] = {"headers": [(b"host", host.encode())]}
    config = ServerConfig(cors_origins=origins)
    if is_allowed:
        check_host(scope, config)
    else:
        with pytest.raises(HostError, match="names of loopback"):
            check_host(scope, config)


def test_the_name_is_shown_safely() -> None:
    scope: dict[str, Any] = {"headers": [(b"host", b"\xff\x1b" + b"x" * 500)]}
    with pytest.raises(HostError) as caught:
        check_host(scope, ServerConfig())
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
