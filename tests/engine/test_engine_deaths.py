"""However an engine dies or hangs, its requests end, each with its own error, and it is seen to be dead."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import traceback
from typing import Any

import pytest
from engine_requests import make_request
from fake_runner import FakeRunner
from running_engine import answer, run, running

from vinfer.engine.engine import Engine
from vinfer.errors import EngineError


class FailingRunner(FakeRunner):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error
        self.may_fail = threading.Event()

    def decode(self, work: Any) -> Any:
        assert self.may_fail.wait(20)
        raise self._error


@pytest.mark.parametrize(
    "error", [RuntimeError(), SystemExit(0), KeyboardInterrupt(), MemoryError()], ids=repr
)
def test_whatever_ends_the_thread_is_seen(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """SystemExit once ended the thread without a word; readiness stayed 200, and requests waited."""

    async def main(engine: Engine) -> list[EngineError]:
        streams = [engine.submit(make_request(f"r{i}", (1,), max_tokens=40)) for i in range(80)]
        runner.may_fail.set()
        errors = []
        for stream in streams:
            with pytest.raises(EngineError, match="failed while serving") as caught:
                await answer(stream)
            errors.append(caught.value)
        return errors

    runner = FailingRunner(error)
    with running(runner) as engine:
        errors = run(main(engine))
        assert not engine.is_alive
    # One traceback for all requests, and no request's own traceback holds those of others.
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert len(set(map(id, errors))) == 80
    assert max(len(traceback.extract_tb(each.__traceback__)) for each in errors) < 10


def test_a_step_that_does_not_come_back_can_be_given_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runner = FakeRunner(num_readable=0)

    async def main(engine: Engine) -> None:
        assert engine.step_seconds == 0.0
        streams = [engine.submit(make_request(name, (1,), max_tokens=40)) for name in "abc"]
        runner.wait_until_blocked()
        await asyncio.sleep(0.05)
        assert engine.step_seconds >= 0.05
        assert engine.is_alive
        engine.give_up()
        assert not engine.is_alive
        for stream in streams:
            with pytest.raises(EngineError, match="failed while serving"):
                await answer(stream)
        with pytest.raises(EngineError, match="cannot answer"):
            engine.check_room("")
        # Stopping does not wait for the thread that hangs.
        before = time.monotonic()
        engine.stop()
        assert time.monotonic() - before < 5

    with running(runner) as engine:
        run(main(engine))
        assert [thread.name for thread in threading.enumerate() if thread.name == "engine-fake"]
    # What it reads after all has no effect.
    for thread in threading.enumerate():
        if thread.name == "engine-fake":
            thread.join(20)
            assert not thread.is_alive()


def test_an_idle_engine_has_no_step(caplog: pytest.LogCaptureFixture) -> None:
    async def main(engine: Engine) -> None:
        assert await answer(engine.submit(make_request("a", (1,)))) == ([2, 3, 4], "length")
        for _ in range(200):
            if engine.step_seconds == 0.0:
                break
            await asyncio.sleep(0.01)
        assert engine.step_seconds == 0.0

    with running(FakeRunner()) as engine:
        run(main(engine))
