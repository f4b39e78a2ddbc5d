"""Signals, in a separate process: drain, drain timeout, second signal, idle."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

SERVER_TESTS = Path(__file__).parents[1]
STREAM = {"model": "fake", "prompt": [4], "stream": True}


@contextlib.contextmanager
def server_process(
    tmp_path: Path, drain_timeout_seconds: float
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [
        sys.executable,
        str(SERVER_TESTS / "drain_process.py"),
        str(tmp_path / "t"),
        str(drain_timeout_seconds),
    ]
    places = [str(SERVER_TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def test_drain(tmp_path: Path) -> None:
    with server_process(tmp_path, 20) as (process, url), httpx.Client(base_url=url, timeout=20) as http:
        with http.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 15}) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            ready = http.get("/readiness")
            while ready.status_code == 200:
                ready = http.get("/readiness")
            assert ready.json()["phase"] == "draining"
            assert http.get("/liveness").status_code == 200
            refused = http.post("/v1/completions", json=STREAM)
            assert refused.status_code == 503
            assert refused.headers["connection"] == "close"
            assert refused.headers["retry-after"] == "5"
            rest = list(lines)
        assert sum('"text":"' in line for line in rest) == 14
        assert rest[-2:] == ["data: [DONE]", ""]
        code, out, err = end_of(process)
    assert code == 0
    assert out == "loaded:\n"
    assert "Traceback" not in err


def test_drain_timeout_ends_streams_properly(tmp_path: Path) -> None:
    with server_process(tmp_path, 0.3) as (process, url), httpx.Client(base_url=url, timeout=20) as http:
        with http.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 100}) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert '"code":"not_ready"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        code, _, err = end_of(process)
    # Whoever supervises the process must be able to see that requests were cut.
    assert code == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_quits_now(tmp_path: Path, second: signal.Signals) -> None:
    with server_process(tmp_path, 600) as (process, url), httpx.Client(base_url=url, timeout=20) as http:
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            http.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 100}) as response,
        ):
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            while http.get("/readiness").status_code == 200:
                pass
            process.send_signal(second)
            list(lines)
        assert end_of(process)[0] == 128 + second


def test_idle_server_ends_at_once(tmp_path: Path) -> None:
    with server_process(tmp_path, 600) as (process, url):
        assert httpx.get(url + "/liveness").status_code == 200
        process.send_signal(signal.SIGINT)
        assert end_of(process)[0] == 0
