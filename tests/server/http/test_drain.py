"""Signals, in a separate process: drain, drain delay and timeout, second signal, idle."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import httpx
import pytest
from server_processes import end_of, server_process

pytestmark = pytest.mark.processes
STREAM = {"model": "fake", "prompt": [4], "stream": True}


def test_drain(tmp_path: Path) -> None:
    with (
        server_process(tmp_path, server={"drain_timeout_seconds": 20}) as (process, url),
        httpx.Client(base_url=url, timeout=20) as http,
    ):
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
    with (
        server_process(tmp_path, server={"drain_timeout_seconds": 0.3}) as (process, url),
        httpx.Client(base_url=url, timeout=20) as http,
    ):
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
    with (
        server_process(tmp_path, server={"drain_timeout_seconds": 600}) as (process, url),
        httpx.Client(base_url=url, timeout=20) as http,
    ):
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
    with server_process(tmp_path, server={"drain_timeout_seconds": 600}) as (process, url):
        assert httpx.get(url + "/liveness").status_code == 200
        process.send_signal(signal.SIGINT)
        assert end_of(process)[0] == 0


def test_before_it_drains_a_server_serves_on_while_balancers_notice(tmp_path: Path) -> None:
    """A rolling restart must not refuse the requests that are on their way."""
    settings = {"drain_timeout_seconds": 20, "drain_delay_seconds": 1.5}
    with server_process(tmp_path, server=settings) as (process, url), httpx.Client(base_url=url) as http:
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while http.get("/readiness").status_code == 200:
            pass
        assert http.get("/health").json() == {"status": "draining"}
        served = http.post("/v1/completions", json={**STREAM, "stream": False, "max_tokens": 2})
        assert served.status_code == 200
        # So that the client's next request goes to another server.
        assert served.headers["connection"] == "close"
        with http.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 25}) as response:
            lines = [line for line in response.iter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        assert time.monotonic() - began > 2.5
        assert end_of(process)[0] == 0


def test_a_second_signal_in_the_delay_quits_now(tmp_path: Path) -> None:
    settings = {"drain_delay_seconds": 600}
    with server_process(tmp_path, server=settings) as (process, url), httpx.Client(base_url=url) as http:
        process.send_signal(signal.SIGTERM)
        while http.get("/readiness").status_code == 200:
            pass
        process.send_signal(signal.SIGTERM)
        assert end_of(process)[0] == 128 + signal.SIGTERM
