"""Engines that die or hang are seen by readiness, and end the process with 1; a drain hides neither."""

from __future__ import annotations

import logging

import pytest
from fake_engine import FakeEngine, served_model
from running_server import RunningServer, Start, run, wait_until

from vinfer.config import ServerConfig
from vinfer.errors import EngineError
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinfer.server.http.serve.DEAD_ENGINE_SECONDS", 0.5)


def test_a_step_that_does_not_come_back_ends_the_process(
    start: Start, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Readiness used to stay 200 for ever."""
    with start(step_timeout_seconds=30) as server:
        server.engine.step_seconds = 29.0
        assert server.http.get("/readiness").status_code == 200
        assert server.chat().status_code == 200
        server.engine.step_seconds = 31.0
        wait_until(lambda: server.http.get("/readiness").status_code == 503)
        assert server.http.get("/readiness").json()["phase"] == "failed"
        assert not server.engine.is_alive
        wait_until(lambda: bool(server.exit_codes))
    assert server.exit_codes == [1]
    assert "takes longer than server.step_timeout_seconds, 30" in caplog.text
    assert "run_server" in capfd.readouterr().err


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_drain_does_not_hide_it(start: Start, how: str) -> None:
    """The drain used to fail all requests and exit with 0."""
    with start(step_timeout_seconds=1) as server:
        server.engine.is_stuck = True
        with server.http.stream(
            "POST", "/v1/completions", json={"model": "fake", "prompt": [4], "stream": True}
        ):
            server.models.leave()
            server.models.drain()
            if how == "dies":
                server.engine.is_alive = False
            else:
                server.engine.step_seconds = 2.0
            wait_until(lambda: not server.engine.is_alive)
        wait_until(lambda: bool(server.exit_codes))
    assert server.exit_codes == [1]


def test_the_model_of_a_dead_engine_is_not_ready(tokenizer: Tokenizer) -> None:
    engines = {"one": FakeEngine(), "two": FakeEngine()}
    models = ModelTable(list(engines))
    for name, engine in engines.items():
        models.serve(served_model(engine, tokenizer, name=name))
    with run(ServerConfig(port=0), models, engines["one"]) as server:
        engines["two"].is_alive = False
        phases = {model["name"]: model["phase"] for model in server.http.get("/readiness").json()["models"]}
        assert phases == {"one": "ready", "two": "failed"}
        wait_until(lambda: bool(server.exit_codes))


def test_an_engine_s_death_is_one_line_per_request(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    """80 requests once wrote 55,073 lines: all of them raised one error object, which collects tracebacks."""
    server.engine.fail_after_tokens = 1
    server.engine.failure = EngineError("the engine of model fake failed while serving this request")
    for stream in (False, True):
        for _ in range(10):
            server.chat(stream=stream)
    failures = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failures) == 20
    assert all("\n" not in line and "failed while serving" in line for line in failures)


def test_a_signal_may_come_while_the_table_is_locked(tokenizer: Tokenizer) -> None:
    """Signal handlers run on the event loop's thread, between any two of its steps."""
    models = ModelTable(["fake"])
    models.serve(served_model(FakeEngine(), tokenizer))
    with models._lock:
        assert models.served_models
        assert models.statuses
        models.leave()
        models.drain()
