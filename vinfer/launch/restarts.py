"""Restarts engines that died: when, how often, and what happens once it is enough.

Called on the event loop, ten times a second for each model without an engine. The loading itself runs on a
thread of its own, so that other models are served meanwhile. It knows no device.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from vinfer.engine.request import EngineClient
from vinfer.errors import EngineError, VinferError
from vinfer.server.model_table import ModelTable

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS = 1.0
MAX_DELAY_SECONDS = 60.0
STABLE_SECONDS = 600.0
"""An engine that has lived for so long has its restarts forgiven."""


@dataclasses.dataclass(slots=True)
class _Recovery:
    """The restarts of one model.

    Attributes:
        num_restarts: those that count, the coming one too.
        due_seconds: time.monotonic() of the next one; None if the engine works.
        loading: the new engine, once a thread loads it.
        started_seconds: time.monotonic() when the last new engine was put to work.
        is_given_up: there will be no further restart.
    """

    num_restarts: int = 0
    due_seconds: float | None = None
    loading: Future[EngineClient] | None = None
    started_seconds: float = 0.0
    is_given_up: bool = False


class Restarts:
    """Decides for each dead engine whether it is restarted, with growing delays.

    Args:
        start: replaces the engine of a model by a new one, which may take long; called on a thread.
        max_restarts: by model, `models[].max_restarts`.
    """

    def __init__(
        self,
        table: ModelTable,
        start: Callable[[str], EngineClient],
        max_restarts: Mapping[str, int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._start = start
        self._max_restarts = dict(max_restarts)
        self._clock = clock
        self._recoveries = {name: _Recovery() for name in max_restarts}

    def __call__(self, name: str) -> bool:
        """Do what is due for a model whose engine is dead.

        Returns:
            False if the process must end because of it.
        """
        recovery = self._recoveries[name]
        if recovery.is_given_up:
            return False
        if recovery.due_seconds is None:
            return self._plan(name, recovery, "has died")
        if recovery.loading is None:
            if self._clock() >= recovery.due_seconds:
                recovery.loading = self._load(name)
            return True
        if not recovery.loading.done():
            return True
        return self._take(name, recovery, recovery.loading)

    def _plan(self, name: str, recovery: _Recovery, what: str) -> bool:
        now = self._clock()
        if recovery.started_seconds and now - recovery.started_seconds >= STABLE_SECONDS:
            recovery.num_restarts = 0
        recovery.num_restarts += 1
        recovery.loading = None
        most = self._max_restarts[name]
        if self._table.is_stuck(name):
            return self._give_up(name, recovery, "hangs, and may still use its device")
        if recovery.num_restarts > most:
            return self._give_up(name, recovery, f"{what}, and models[].max_restarts is {most}")
        delay = min(FIRST_DELAY_SECONDS * 2 ** (recovery.num_restarts - 1), MAX_DELAY_SECONDS)
        recovery.due_seconds = now + delay
        self._table.report(name, "restarting")
        logger.error(
            "the engine of %s %s: restarting it in %g s (%d of %d)",
            name,
            what,
            delay,
            recovery.num_restarts,
            most,
        )
        return True

    def _give_up(self, name: str, recovery: _Recovery, why: str) -> bool:
        recovery.is_given_up = True
        if self._table.is_required(name):
            self._table.report(name, "failed")
            logger.error("the engine of %s %s", name, why)
            return False
        logger.error("the engine of %s %s: going on without it", name, why)
        self._table.fail(name, EngineError(f"the engine of model {name} {why}"))
        return True

    def _load(self, name: str) -> Future[EngineClient]:
        self._table.count_restart(name)
        future: Future[EngineClient] = Future()

        def load() -> None:
            try:
                future.set_result(self._start(name))
            except BaseException as error:  # noqa: BLE001  a SystemExit too; logged where it is taken
                future.set_exception(error)

        threading.Thread(target=load, name=f"restart-{name}", daemon=True).start()
        return future

    def _take(self, name: str, recovery: _Recovery, loading: Future[EngineClient]) -> bool:
        error = loading.exception()
        if isinstance(error, VinferError):
            return self._plan(name, recovery, f"could not be restarted ({error.message})")
        if error is not None:
            logger.error("model %s could not be restarted", name, exc_info=error)
            return self._plan(name, recovery, "could not be restarted")
        recovery.due_seconds = recovery.loading = None
        recovery.started_seconds = self._clock()
        self._table.replace_engine(name, loading.result())
        logger.warning("the engine of %s was restarted, and serves again", name)
        return True
