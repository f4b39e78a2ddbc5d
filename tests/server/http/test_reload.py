"""SIGHUP reloads API keys, the log level and the hot keys of the config; SIGUSR1 writes stacks."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_processes import end_of, server_process, write_config

from vinfer.config import HOT_KEYS, Change, changes, load_config, reference_table, with_hot_keys

pytestmark = pytest.mark.processes


def write_keys(tmp_path: Path, *lines: str, mode: int = 0o600) -> Path:
    path = tmp_path / "keys"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    path.chmod(mode)
    return path


def status_with(http: httpx.Client, key: str, **fields: Any) -> int:
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": "fake", "prompt": [4], "max_tokens": 1, **fields}
    return http.post("/v1/completions", json=body, headers=headers).status_code


def after_hangup(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    process.send_signal(signal.SIGHUP)
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    assert condition()


def test_a_hangup_reloads_and_ends_nothing(tmp_path: Path) -> None:
    """It used to end the process without a drain."""
    server = {"api_keys_file": str(write_keys(tmp_path, "old-key")), "max_n": 2, "port": 8000}
    with server_process(tmp_path, server=server) as (process, url), httpx.Client(base_url=url) as http:
        assert status_with(http, "old-key", n=3) == 400
        with http.stream(
            "POST",
            "/v1/completions",
            json={"model": "fake", "prompt": [4], "max_tokens": 20, "stream": True},
            headers={"authorization": "Bearer old-key"},
        ) as response:
            lines = response.iter_lines()
            next(lines)
            write_keys(tmp_path, "new-key")
            write_config(tmp_path, server={**server, "max_n": 3, "port": 9000}, model={"max_queue": 7})
            after_hangup(process, lambda: status_with(http, "new-key", n=3) == 200)
            assert status_with(http, "old-key") == 401
            # What runs goes on, although its key is gone.
            assert [line for line in lines if line][-1] == "data: [DONE]"
        process.send_signal(signal.SIGTERM)
        code, _, log = end_of(process)
    assert code == 0
    assert "SIGHUP: 1 API keys; changed: server.max_n, models[0].max_queue" in log
    assert "restart the server to change server.port" in log
    assert "new-key" not in log
    assert "old-key" not in log


@pytest.mark.parametrize(
    ("keys", "mode", "setting", "words"),
    [
        ("new-key", 0o644, 3, "has mode 0644"),
        ("", 0o600, 3, "contains no key"),
        ("new-key", 0o600, "three", "max_n is 'three'"),
    ],
)
def test_nothing_is_reloaded_if_anything_is_wrong(
    tmp_path: Path, keys: str, mode: int, setting: Any, words: str
) -> None:
    server = {"api_keys_file": str(write_keys(tmp_path, "old-key")), "max_n": 2}
    with server_process(tmp_path, server=server) as (process, url), httpx.Client(base_url=url) as http:
        write_keys(tmp_path, keys, mode=mode)
        write_config(tmp_path, server={**server, "max_n": setting})
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert status_with(http, "old-key", n=3) == 400
        assert status_with(http, "old-key") == 200
        assert status_with(http, "new-key") == 401
        process.send_signal(signal.SIGTERM)
        code, _, log = end_of(process)
    assert code == 0
    assert "SIGHUP: nothing was reloaded" in log
    assert words in log


def test_the_log_level_is_reloaded_and_lines_are_json(tmp_path: Path) -> None:
    with (
        server_process(tmp_path, server={}, log_level="error", log_format="json") as (process, url),
        httpx.Client(base_url=url) as http,
    ):
        assert http.post("/v1/completions", json={"model": "fake", "prompt": [4]}).status_code == 200
        write_config(tmp_path, server={}, log_level="debug", log_format="json")
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        body = {"model": "fake", "prompt": [4, 5], "max_tokens": 3}
        headers = {"x-request-id": "trace-7"}
        assert http.post("/v1/completions", json=body, headers=headers).status_code == 200
        assert http.get("/liveness").status_code == 200
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in end_of(process)[2].splitlines()]
    access = [line for line in lines if line["logger"] == "vinfer.access"]
    completion, probe = access
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", completion["time"])
    assert completion["level"] == "info"
    assert completion["client"] == "127.0.0.1"
    assert completion["model"] == "fake"
    assert (completion["prompt_tokens"], completion["completion_tokens"]) == (2, 3)
    assert (completion["method"], completion["route"], completion["status"]) == (
        "POST",
        "/v1/completions",
        200,
    )
    assert 0.1 <= completion["first_token_seconds"] < completion["seconds"]
    assert completion["request_id"] == "trace-7"
    assert (probe["level"], probe["route"]) == ("debug", "/liveness")


def test_stacks_on_request(tmp_path: Path) -> None:
    with server_process(tmp_path, server={}) as (process, url):
        assert httpx.get(url + "/liveness").status_code == 200
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        assert httpx.get(url + "/liveness").status_code == 200
        process.send_signal(signal.SIGTERM)
        code, _, log = end_of(process)
    assert code == 0
    assert "Current thread" in log
    assert "run_server" in log


def test_hot_keys_exist() -> None:
    known = set(re.findall(r"^\| `(\S+)` \|", reference_table(), re.MULTILINE))
    blocks = {key.rpartition(".")[0] for key in known}
    assert known | blocks >= HOT_KEYS


def test_what_differs(tmp_path: Path) -> None:
    old = load_config(write_config(tmp_path, server={"port": 1, "max_n": 2}), environ={})
    path = write_config(
        tmp_path,
        server={"port": 2, "max_n": 3, "images": {"max_frames": 7}},
        model={"num_slots": 8, "sampling": {"temperature": 0.5}},
        log_level="debug",
    )
    new = load_config(path, environ={})
    found = {change.key: change for change in changes(old, new)}
    assert found["server.port"] == Change("server.port", 1, 2)
    assert {key for key, change in found.items() if change.is_hot} == {
        *("log_level", "server.max_n", "server.images.max_frames", "models[0].sampling.temperature"),
    }
    assert {key for key, change in found.items() if not change.is_hot} == {
        "server.port",
        "models[0].num_slots",
    }
    mixed = with_hot_keys(old, new)
    assert [change.key for change in changes(mixed, new)] == ["server.port", "models[0].num_slots"]
    assert changes(new, new) == []


def test_a_model_that_is_not_there_is_one_change(tmp_path: Path) -> None:
    path = write_config(tmp_path, server={})
    old = load_config(path, environ={})
    other = {"name": "other", "source": "org/other"}
    path.write_text(json.dumps({"models": [{"name": "fake", "source": "org/fake"}, other]}), encoding="utf-8")
    new = load_config(path, environ={})
    assert [(change.key, change.is_hot) for change in changes(old, new)] == [("models[1]", False)]
    assert with_hot_keys(old, new) == old
