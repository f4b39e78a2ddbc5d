"""When an engine that died is restarted, and when it is given up. The clock is the test's own."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from typing import Any

import pytest

from vinfer.engine.tenants import TenantLimits
from vinfer.errors import BundleError
from vinfer.launch.restarts import MAX_DELAY_SECONDS, STABLE_SECONDS, Restarts
from vinfer.server.model_table import ModelTable


class StillEngine:
    def __init__(self) -> None:
        self.is_alive = True
        self.step_seconds = 0.0
        self.limits: TenantLimits | None = None

    def set_limits(self, limits: TenantLimits) -> None:
        self.limits = limits

    def give_up(self) -> None:
        self.is_alive = False


@dataclasses.dataclass
class Served:
    name: str
    engine: Any


@dataclasses.dataclass
class Machine:
    """A model and its restarts; each start yields the next of `outcomes`, or an engine."""

    optional: tuple[str, ...] = ()
    max_restarts: int = 3
    outcomes: list[Exception] = dataclasses.field(default_factory=list)
    now: float = 100.0
    num_starts: int = 0
    may_start: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.may_start.set()
        self.table = ModelTable(["other", "m"], self.optional)
        for name in ("other", "m"):
            served: Any = Served(name, StillEngine())
            self.table.serve(served)
        limits = {"other": 3, "m": self.max_restarts}
        self.recover = Restarts(self.table, self._start, limits, clock=lambda: self.now)

    @property
    def engine(self) -> Any:
        return self.table.served_models[1].engine

    @property
    def phases(self) -> tuple[str, str]:
        """Those of the server and of the model."""
        return self.table.phase, self.table.statuses[1].phase

    def tick(self) -> bool:
        """Do what the event loop does ten times a second; False if the process must end."""
        return all(self.recover(name) for name in self.table.dead)

    def tick_until_loaded(self) -> bool:
        """Tick until the thread that loads has come to its end and was noticed."""
        until = time.monotonic() + 20
        num_starts = self.num_starts
        goes_on = self.tick()
        while self.num_starts == num_starts or threading_names():
            assert time.monotonic() < until
            time.sleep(0.01)
        return goes_on and self.tick()

    def die(self) -> bool:
        self.engine.is_alive = False
        return self.tick()

    def _start(self, name: str) -> Any:
        assert name == "m"
        assert self.may_start.wait(20)
        self.num_starts += 1
        if self.outcomes:
            raise self.outcomes.pop(0)
        return StillEngine()


def threading_names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "restart-m"]


def test_a_dead_engine_is_replaced_after_a_delay_within_the_same_limits() -> None:
    machine = Machine()
    limits = TenantLimits(max_queue=1, max_queue_per_tenant=1, max_running_per_tenant=1)
    dead = machine.engine
    dead.set_limits(limits)
    machine.may_start.clear()
    assert machine.die()
    assert machine.phases == ("restarting", "restarting")
    assert machine.table.loading
    machine.now += 0.9
    assert machine.tick()
    assert not threading_names()
    assert machine.table.num_restarts == {"other": 0, "m": 0}
    machine.now += 0.2
    assert machine.tick()
    assert threading_names()
    # It takes as long as it takes, and there is only one at a time.
    machine.now += 1000
    assert machine.tick()
    assert machine.engine is dead
    machine.may_start.set()
    while machine.engine is dead:
        assert machine.tick()
        time.sleep(0.01)
    assert machine.engine.is_alive
    assert machine.engine.limits == limits
    assert machine.phases == ("ready", "ready")
    assert not machine.table.loading
    assert machine.table.num_restarts == {"other": 0, "m": 1}


def test_delays_grow_and_are_limited() -> None:
    machine = Machine(max_restarts=1000)
    delays = []
    for _ in range(9):
        assert machine.die()
        died = machine.now
        while not threading_names() and machine.num_starts == len(delays):
            machine.now += 0.5
            assert machine.tick()
        delays.append(machine.now - died)
        while not machine.engine.is_alive:
            assert machine.tick()
            time.sleep(0.005)
    assert delays == [1, 2, 4, 8, 16, 32, MAX_DELAY_SECONDS, MAX_DELAY_SECONDS, MAX_DELAY_SECONDS]


@pytest.mark.parametrize("is_required", [True, False], ids=["required", "optional"])
def test_repeated_deaths_end_it(is_required: bool, caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(optional=() if is_required else ("m",), max_restarts=2)
    for _ in range(2):
        assert machine.die()
        machine.now += 60
        assert machine.tick_until_loaded()
    goes_on = machine.die()
    assert "has died, and models[].max_restarts is 2" in caplog.text
    assert machine.num_starts == 2
    if is_required:
        assert not goes_on
        assert machine.phases == ("failed", "failed")
        assert not machine.tick()
    else:
        assert goes_on
        assert machine.phases == ("ready", "failed")
        assert machine.table.ready
        # It is gone, with its memory.
        assert [served.name for served in machine.table.served_models] == ["other"]
    assert machine.table.failure is None


def test_an_engine_that_lives_long_has_its_restarts_forgiven() -> None:
    machine = Machine(max_restarts=1)
    for _ in range(3):
        assert machine.die()
        machine.now += 60
        assert machine.tick_until_loaded()
        machine.now += STABLE_SECONDS
    assert machine.num_starts == 3


def test_a_bundle_that_does_not_load_counts_as_a_death(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(max_restarts=2, outcomes=[BundleError("the file is gone"), RuntimeError("boom")])
    assert machine.die()
    for is_last in (False, True):
        machine.now += 60
        assert machine.tick_until_loaded() is not is_last
    texts = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert texts == [
        "the engine of m has died: restarting it in 1 s (1 of 2)",
        "the engine of m could not be restarted (the file is gone): restarting it in 2 s (2 of 2)",
        "model m could not be restarted",
        "the engine of m could not be restarted, and models[].max_restarts is 2",
    ]


@pytest.mark.parametrize("is_required", [True, False], ids=["required", "optional"])
def test_an_engine_that_hangs_is_not_restarted(is_required: bool) -> None:
    """Its thread may hold the device, and its memory."""
    machine = Machine(optional=() if is_required else ("m",))
    machine.engine.step_seconds = 31.0
    assert machine.table.give_up_stuck(30) == ("m",)
    assert machine.tick() is not is_required
    assert machine.phases == ("failed" if is_required else "ready", "failed")
    assert not threading_names()
    assert machine.num_starts == 0
