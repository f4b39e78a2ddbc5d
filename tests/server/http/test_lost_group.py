"""A group of hosts that has lost a member: clients get an error event, and the process ends."""

from __future__ import annotations

import pytest
from fake_engine import FakeEngine, served_model
from running_server import run, wait_until

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinfer.server.http.serve.DEAD_ENGINE_SECONDS", 0.5)


def test_every_model_fails_and_the_process_ends(tokenizer: Tokenizer) -> None:
    engines = {"one": FakeEngine(), "two": FakeEngine()}
    models = ModelTable(list(engines))
    for name, engine in engines.items():
        models.serve(served_model(engine, tokenizer, name=name))
    lost: list[str] = []
    with run(ServerConfig(), models, engines["one"], lost_group=lambda: lost[0] if lost else None) as server:
        assert server.chat(model="two").status_code == 200
        lost.append("member 1 has left")
        wait_until(lambda: models.phase == "failed")
        assert [engine.is_alive for engine in engines.values()] == [False, False]
        assert server.http.get("/readiness").status_code == 503
        wait_until(lambda: bool(server.exit_codes))
    assert server.exit_codes == [1]


def test_a_group_that_ends_while_models_load_ends_the_process_at_once() -> None:
    models = ModelTable(["one"])
    models.report("one", "loading weights")
    with run(ServerConfig(), models, FakeEngine(), lost_group=lambda: "member 1 has left") as server:
        wait_until(lambda: bool(server.exit_codes))
    assert server.exit_codes == [1]
    assert models.failure is not None
    assert models.failure.message == "the group of hosts has ended: member 1 has left"
