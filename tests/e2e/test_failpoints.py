"""Engines that fail, hang or run out of memory in a real server: probes, restarts, exit codes and log lines.

Two models of one tiny bundle. `probe/failpoints.py` makes them fail when a test says so.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import CACHE, EXIT_SECONDS, ROOT, ServerProcess, started, tiny_environment, wait_until
from tiny.checkpoints import checkpoint


class House:
    """A server of the models `dies` and `stays`, and the file that asks for failures."""

    def __init__(self, server: ServerProcess, failpoints: Path) -> None:
        self.server = server
        self._failpoints = failpoints

    def fail(self, *lines: str) -> None:
        """Ask for failures; see `probe/failpoints.py`."""
        scratch = self._failpoints.with_suffix(".part")
        scratch.write_text("\n".join(lines))
        scratch.rename(self._failpoints)

    def complete(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": 12, "ignore_eos": True, **fields}
        return self.server.http.post("/v1/completions", json={"temperature": 0, **body})

    def readiness(self) -> tuple[int, str, list[str]]:
        """Return the status, the server's phase and those of the models."""
        response = self.server.http.get("/readiness")
        phases = response.json()
        return response.status_code, phases["phase"], [model["phase"] for model in phases["models"]]

    def count(self, text: str) -> int:
        """Return how many lines of the log contain a text."""
        return sum(text in line for line in self.server.log.splitlines())


@contextlib.contextmanager
def house(tmp_path: Path, *, server: dict[str, Any] | None = None, **of_dying: Any) -> Iterator[House]:
    tiny = {
        "source": str(checkpoint("llama")),
        "dtype": "float32",
        "mesh": {"tp": 1},
        "max_model_len": 128,
        "num_slots": 2,
        "streaming_chunks": 4,
        "precompile": [{"prefill_length": 32}],
        "verify": "off",
    }
    yaml = tmp_path / "two.yaml"
    models = [{"name": "dies", **tiny, **of_dying}, {"name": "stays", **tiny}]
    yaml.write_text(json.dumps({"server": server or {}, "models": models}))
    failpoints = tmp_path / "failpoints"
    # The bundle of all these tests is built only once.
    env = tiny_environment(
        VINFER_CACHE_DIR=str(CACHE.with_name("e2e-tiny-cache")), FAILPOINTS_FILE=str(failpoints)
    )
    with started(yaml, env=env) as process:
        process.wait_until_ready()
        yield House(process, failpoints)


def test_one_model_s_death_leaves_the_other_serving_and_is_healed(tmp_path: Path) -> None:
    with house(tmp_path) as both:
        expected = both.complete("dies").json()["choices"][0]["text"]
        assert both.complete("stays").json()["choices"][0]["text"] == expected
        for num, kind in enumerate(("raise", "exit", "oom"), 1):
            both.fail(f"engine-dies/decode {kind}")
            failed = both.complete("dies")
            assert failed.status_code == 500
            assert failed.json()["error"]["request_id"] == failed.headers["x-request-id"]
            wait_until(lambda: both.readiness() != (200, "ready", ["ready"] * 2), "the death")
            assert both.complete("stays").json()["choices"][0]["text"] == expected
            wait_until(
                lambda num=num: both.count(f"restarting it in {2 ** (num - 1)} s ({num} of 3)"), "a plan"
            )
            assert both.complete("dies").status_code in (200, 503)
            wait_until(lambda: both.readiness() == (200, "ready", ["ready"] * 2), "a new engine")
            assert both.complete("dies").json()["choices"][0]["text"] == expected
            assert both.count("ERROR   engine of model dies failed") == num
            assert both.server.log.count("Traceback") == num
        samples = both.server.metrics()
        assert samples["model_restarts_total"] == 3
        assert samples["engine_up"] == 2
        assert samples["post_ready_compiles_total"] == 0
        assert both.count("serves again") == 3
        assert both.server.terminate() == 0


def test_a_stream_ends_with_an_error_event(tmp_path: Path) -> None:
    with house(tmp_path) as both:
        both.fail("engine-dies/decode raise@10")
        body = {"model": "dies", "prompt": "Once", "max_tokens": 100, "ignore_eos": True, "stream": True}
        with both.server.http.stream("POST", "/v1/completions", json=body) as response:
            events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert "choices" in json.loads(events[0])
        assert events[-1] == "[DONE]"
        error = json.loads(events[-2])["error"]
        assert error["code"] == "engine_error"
        assert error["request_id"] == response.headers["x-request-id"]


def test_repeated_deaths_end_the_process_and_probes_see_it_first(tmp_path: Path) -> None:
    with house(tmp_path, max_restarts=1) as both:
        both.fail("engine-dies/decode raise*")
        assert both.complete("dies").status_code == 500
        wait_until(lambda: both.server.metrics()["model_restarts_total"] == 1, "the restart")
        wait_until(lambda: both.complete("dies").status_code == 500, "the second death")
        wait_until(lambda: both.readiness()[:2] == (503, "failed"), "the phase")
        assert both.server.process.wait(EXIT_SECONDS) == 1
        assert both.count("the engine of dies has died, and models[].max_restarts is 1") == 1
        assert both.count("ending the process") == 1


def test_the_server_goes_on_without_an_optional_model(tmp_path: Path) -> None:
    with house(tmp_path, required=False, max_restarts=2) as both:
        # The server does not wait for it.
        wait_until(lambda: both.readiness()[2] == ["ready", "ready"], "both models")
        both.fail("engine-dies/decode oom", "restart-dies/load oom*")
        assert both.complete("dies").status_code == 500
        wait_until(lambda: both.count("going on without it") == 1, "the end of the model")
        assert both.readiness() == (200, "ready", ["failed", "ready"])
        assert both.complete("dies").status_code == 503
        assert both.complete("stays").status_code == 200
        assert both.server.metrics()["model_restarts_total"] == 2
        assert both.server.terminate() == 0


def test_a_hang_ends_the_process_with_stacks(tmp_path: Path) -> None:
    with house(tmp_path, server={"step_timeout_seconds": 2}) as both:
        both.fail("engine-dies/decode hang")
        assert both.complete("dies").status_code == 500
        assert both.readiness()[:2] == (503, "failed")
        assert both.server.process.wait(EXIT_SECONDS) == 1
        assert both.count("takes longer than server.step_timeout_seconds, 2") == 1
        assert both.count("the engine of dies hangs, and may still use its device") == 1
        # The stack of the thread that hangs.
        assert both.count("failpoints.py") >= 1


@pytest.mark.parametrize("point", ["tokenize", "detokenize"])
def test_one_request_s_failure_is_its_own(tmp_path: Path, point: str) -> None:
    with house(tmp_path) as both:
        thread = "vinfer-worker" if point == "tokenize" else "MainThread"
        both.fail(f"{thread}/{point} raise")
        failed = both.complete("dies")
        assert failed.status_code == 500
        assert "failpoint" not in failed.text
        assert both.count(f"request {failed.headers['x-request-id']} failed: RuntimeError") == 1
        assert both.complete("dies").status_code == 200
        assert both.readiness()[0] == 200
        assert both.server.terminate() == 0


def test_vinfer_has_no_failpoints_of_its_own() -> None:
    """So nothing in a config, a request or the environment of an installed vinfer can make it fail."""
    assert not [path for path in (ROOT / "vinfer").rglob("*.py") if "failpoint" in path.read_text().lower()]
