"""The admin routes on their Unix socket: who may connect, what they do, and what they refuse."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine, served_model
from running_server import RunningServer, run, wait_until

from vinfer.config import ServerConfig
from vinfer.errors import BindError, DeviceError, EngineError
from vinfer.server.admin.app import AdminActions
from vinfer.server.admin.listener import bind_admin
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer


class House:
    """A server with an admin socket; `profile` waits until the test lets it end."""

    def __init__(self, server: RunningServer, admin: httpx.Client, path: Path) -> None:
        self.server, self.admin, self.path = server, admin, path
        self.levels: list[str] = []
        self.profiled: list[float] = []
        self.may_end = threading.Event()
        self.failure: Exception | None = None


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a short name: the path of a socket must be short."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def house(directory: Path, tokenizer: Tokenizer) -> Iterator[House]:
    path = directory / "admin.sock"
    engine = FakeEngine()
    models = ModelTable(["fake", "gone"], optional=["gone"])
    models.serve(served_model(engine, tokenizer))
    models.fail("gone", DeviceError("the devices have no room"))
    made: list[House] = []

    def profile(seconds: float) -> str:
        made[0].profiled.append(seconds)
        assert made[0].may_end.wait(20)
        if made[0].failure is not None:
            raise made[0].failure
        return "/where/it/is"

    actions = AdminActions(set_log_level=lambda level: made[0].levels.append(level), profile=profile)
    transport = httpx.HTTPTransport(uds=str(path))
    with (
        run(ServerConfig(admin_socket=path), models, engine, actions=actions) as server,
        httpx.Client(transport=transport, base_url="http://admin", timeout=30) as admin,
    ):
        made.append(House(server, admin, path))
        wait_until(lambda: server.http.get("/liveness").status_code == 200)
        yield made[0]


def test_only_this_user_may_connect(house: House) -> None:
    mode = house.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    # Nothing else is left of how it was made.
    assert [path.name for path in house.path.parent.iterdir() if path.name.startswith(".admin")] == []


def test_its_routes_are_not_those_of_the_port(house: House) -> None:
    for method, path in (("GET", "/stacks"), ("POST", "/drain"), ("GET", "/caches")):
        assert house.server.http.request(method, path).status_code == 404
    assert house.admin.get("/v1/models").status_code == 404


def test_models_are_shown_with_their_errors(house: House) -> None:
    assert house.admin.get("/models").json() == {
        "phase": "ready",
        "models": [
            {"name": "fake", "phase": "ready", "required": True, "restarts": 0, "error": None},
            {
                "name": "gone",
                "phase": "failed",
                "required": False,
                "restarts": 0,
                "error": "the devices have no room",
            },
        ],
    }


def test_caches_have_figures(house: House) -> None:
    assert house.server.chat(response_format={"type": "json_object"}).status_code in (200, 500)
    caches = house.admin.get("/caches").json()["fake"]
    assert caches["grammars"] == {"kept": 1, "waiting": 0}
    assert caches["kv_cache"].keys() == {"usage_fraction", "preemptions"}


def test_stacks_of_threads_and_tasks(house: House) -> None:
    house.server.engine.is_stuck = True
    body = {"model": "fake", "prompt": [4], "stream": True}
    with house.server.http.stream("POST", "/v1/completions", json=body):
        text = house.admin.get("/stacks").text
    assert "thread MainThread" in text
    assert "run_server" in text
    # The request that waits.
    assert "sse.py" in text


def test_the_log_level_is_set(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert house.admin.post("/log-level", json={"level": "debug"}).json() == {"level": "debug"}
    assert house.levels == ["debug"]
    assert "log level is now debug" in caplog.text


def test_a_profile_is_taken_one_at_a_time(house: House) -> None:
    answers: list[httpx.Response] = []
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(house.path)), base_url="http://admin") as first:

        def take() -> None:
            answers.append(first.post("/profile", json={"seconds": 2.5}))

        thread = threading.Thread(target=take)
        thread.start()
        wait_until(lambda: house.profiled == [2.5])
        # The server serves meanwhile.
        assert house.server.chat().status_code == 200
        second = house.admin.post("/profile", json={"seconds": 1})
        assert second.status_code == 429
        house.may_end.set()
        thread.join(20)
    assert answers[0].json() == {"directory": "/where/it/is"}
    assert house.profiled == [2.5]
    house.failure = EngineError("the profile failed: x")
    assert house.admin.post("/profile", json={"seconds": 1}).status_code == 500
    house.failure = None
    assert house.admin.post("/profile", json={"seconds": 1}).status_code == 200


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/log-level", b'{"level": "trace"}'),
        ("/log-level", b'{"level": ["debug"]}'),
        ("/log-level", b'{"level": "debug", "file": "/tmp/x"}'),
        ("/log-level", b""),
        ("/log-level", b" " * 2000),
        ("/profile", b'{"seconds": 0}'),
        ("/profile", b'{"seconds": 61}'),
        ("/profile", b'{"seconds": true}'),
        ("/profile", b'{"seconds": NaN}'),
        ("/profile", b'{"directory": "/tmp/x"}'),
    ],
)
def test_wrong_bodies_are_refused(house: House, path: str, content: bytes) -> None:
    house.may_end.set()
    answer = house.admin.post(path, content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert house.levels == []
    assert house.profiled == []


def test_a_drain_ends_the_server_and_removes_the_socket(house: House) -> None:
    assert house.admin.post("/drain").json() == {"phase": "draining"}
    wait_until(lambda: bool(house.server.exit_codes))
    assert house.server.exit_codes == [0]
    assert not house.path.exists()


def test_without_a_directory_there_is_no_profile(directory: Path, tokenizer: Tokenizer) -> None:
    path = directory / "s"
    models = ModelTable(["fake"])
    models.serve(served_model(engine := FakeEngine(), tokenizer))
    actions = AdminActions(set_log_level=lambda _: None)
    with run(ServerConfig(admin_socket=path), models, engine, actions=actions) as server:
        wait_until(lambda: server.http.get("/liveness").status_code == 200)
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://admin") as admin:
            answer = admin.post("/profile", json={"seconds": 1})
    assert answer.status_code == 400
    assert "server.profile_dir is not set" in answer.json()["error"]["message"]


def test_what_a_dead_server_left_is_replaced_and_nothing_else(directory: Path) -> None:
    path = directory / "s"
    with contextlib.closing(bind_admin(path)), pytest.raises(BindError, match="another server listens"):
        bind_admin(path)
    # Closed, and still there.
    assert path.is_socket()
    with contextlib.closing(bind_admin(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    file = directory / "file"
    file.write_text("precious")
    with pytest.raises(BindError, match="is no socket"):
        bind_admin(file)
    assert file.read_text() == "precious"
    link = directory / "link"
    os.symlink(file, link)
    with pytest.raises(BindError, match="is no socket"):
        bind_admin(link)
    with pytest.raises(BindError, match="No such file or directory: choose a directory"):
        bind_admin(Path("/missing/s"))
    with pytest.raises(BindError, match="longer than 90 bytes"):
        bind_admin(directory / ("x" * 90))
