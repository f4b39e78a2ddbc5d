"""One model's engine dies: what clients, probes and metrics see until it has another, or none for good."""

from __future__ import annotations

import threading

import pytest
from fake_engine import FakeEngine, served_model
from running_server import RunningServer, run, wait_until

from vinfer.config import ServerConfig
from vinfer.errors import DeviceError, EngineError
from vinfer.launch.restarts import Restarts
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinfer.server.http.serve.DEAD_ENGINE_SECONDS", 0.2)
    monkeypatch.setattr("vinfer.launch.restarts.FIRST_DELAY_SECONDS", 0.1)


class House:
    """Two models, one of which dies; the test says when its new engine is there."""

    def __init__(
        self, tokenizer: Tokenizer, *, optional: tuple[str, ...] = (), max_restarts: int = 1
    ) -> None:
        self.engines = {"stays": FakeEngine(), "dies": FakeEngine()}
        self.models = ModelTable(list(self.engines), optional)
        for name, engine in self.engines.items():
            self.models.serve(served_model(engine, tokenizer, name=name))
        self.is_loaded = threading.Event()
        self.failure: Exception | None = None
        self.recover = Restarts(self.models, self._start, dict.fromkeys(self.engines, max_restarts))

    def _start(self, name: str) -> FakeEngine:
        assert self.is_loaded.wait(20)
        if self.failure is not None:
            raise self.failure
        self.engines[name] = FakeEngine()
        return self.engines[name]


def statuses(server: RunningServer) -> dict[str, int]:
    return {name: server.chat(model=name).status_code for name in ("stays", "dies")}


def metric(server: RunningServer, name: str) -> dict[str, float]:
    """Return a metric's value by model."""
    lines = [line for line in server.http.get("/metrics").text.splitlines() if line.startswith(f"{name}{{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines}


@pytest.mark.parametrize("is_optional", [False, True], ids=["required", "optional"])
def test_the_other_model_is_served_while_one_is_restarted(tokenizer: Tokenizer, is_optional: bool) -> None:
    house = House(tokenizer, optional=("dies",) if is_optional else ())
    with run(ServerConfig(), house.models, house.engines["stays"], recover=house.recover) as server:
        assert statuses(server) == {"stays": 200, "dies": 200}
        assert metric(server, "vinfer:model_restarts_total") == {"stays": 0, "dies": 0}
        house.engines["dies"].is_alive = False
        wait_until(lambda: metric(server, "vinfer:model_restarts_total")["dies"] == 1)
        assert statuses(server) == {"stays": 200, "dies": 503}
        refused = server.chat(model="dies")
        assert int(refused.headers["retry-after"]) >= 1
        assert metric(server, "vinfer:engine_up") == {"stays": 1, "dies": 0}
        probe = server.http.get("/readiness")
        assert probe.status_code == (200 if is_optional else 503)
        assert probe.json()["phase"] == ("ready" if is_optional else "restarting")
        assert [model["phase"] for model in probe.json()["models"]] == ["ready", "restarting"]
        assert server.http.get("/health").status_code == probe.status_code
        house.is_loaded.set()
        wait_until(lambda: statuses(server) == {"stays": 200, "dies": 200})
        assert server.http.get("/readiness").status_code == 200
        assert metric(server, "vinfer:engine_up") == {"stays": 1, "dies": 1}
    assert server.exit_codes == [0]


def test_a_required_model_that_keeps_dying_ends_the_process(tokenizer: Tokenizer) -> None:
    house = House(tokenizer, max_restarts=1)
    house.is_loaded.set()
    with run(ServerConfig(), house.models, house.engines["stays"], recover=house.recover) as server:
        house.engines["dies"].is_alive = False
        wait_until(lambda: house.models.ready and house.models.num_restarts["dies"] == 1)
        house.engines["dies"].is_alive = False
        wait_until(lambda: house.models.phase == "failed")
        wait_until(lambda: bool(server.exit_codes))
    assert server.exit_codes == [1]


def test_the_server_goes_on_without_an_optional_model(tokenizer: Tokenizer) -> None:
    house = House(tokenizer, optional=("dies",), max_restarts=1)
    house.is_loaded.set()
    house.failure = DeviceError("the devices have no room")
    with run(ServerConfig(), house.models, house.engines["stays"], recover=house.recover) as server:
        house.engines["dies"].is_alive = False
        wait_until(lambda: len(house.models.served_models) == 1)
        assert server.http.get("/readiness").status_code == 200
        assert statuses(server) == {"stays": 200, "dies": 503}
        assert metric(server, "vinfer:engine_up") == {"stays": 1, "dies": 0}
        assert [model["id"] for model in server.http.get("/v1/models").json()["data"]] == ["stays"]
        # Nor does it end later.
        threading.Event().wait(0.5)
        assert server.exit_codes == []
    assert server.exit_codes == [0]


def test_a_drain_restarts_nothing(tokenizer: Tokenizer) -> None:
    house = House(tokenizer)
    house.engines["stays"].is_stuck = True
    with run(ServerConfig(), house.models, house.engines["stays"], recover=house.recover) as server:
        body = {"model": "stays", "prompt": [4], "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body):
            house.models.leave()
            house.models.drain()
            house.engines["dies"].is_alive = False
            threading.Event().wait(0.5)
            assert house.models.num_restarts["dies"] == 0
            house.engines["stays"].fail_after_tokens = 0
            house.engines["stays"].failure = EngineError("over")
        wait_until(lambda: bool(server.exit_codes))
    assert server.exit_codes == [1]
