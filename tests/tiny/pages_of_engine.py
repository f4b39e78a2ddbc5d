"""Reaches into an engine on one device: which pages are free, what they hold, how many a request has.

For tests that leave in pages what an old owner might have left. Nothing here is part of the engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from vinfer.bundle.directory import read_manifest
from vinfer.engine.engine import Engine
from vinfer.engine.kv_cache.pages import NO_PAGE
from vinfer.engine.kv_cache.prefix_keys import PrefixKeys

PATIENCE_SECONDS = 60


class EnginePages:
    """The pages of an engine over a bundle."""

    def __init__(self, engine: Engine, directory: Path) -> None:
        self._engine = engine
        manifest = read_manifest(directory)
        self.plan = manifest.page_plan
        self._groups = [array.group for array in manifest.kv]
        (self._shard,) = engine._scheduler._pages

    def wait_until_idle(self) -> None:
        """Wait until no request has pages, and check that none was lost."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        scheduler = self._engine._scheduler
        while self._engine._in_flight or scheduler.num_running or scheduler.num_waiting:
            assert time.monotonic() < deadline, "the engine is still busy"
            time.sleep(0.01)
        scheduler.check_integrity()
        assert scheduler.kv_usage_fraction == 0

    def fill_free(self, value: float) -> int:
        """Fill every page that nobody can find; return how many there are in the first group."""
        self.wait_until_idle()
        free = [np.array(pool._free, np.int32) for pool in self._shard._pools]
        self._fill([(pages,) for pages in free], value)
        return len(free[0])

    def fill_behind(self, scope: str, tokens: Sequence[int], value: float) -> None:
        """Fill the last page of a prompt from its last token on; equal prompts copy what is before."""
        self.wait_until_idle()
        end = len(tokens) - 1
        key = PrefixKeys(scope, tokens, (), self._shard.page_size).of_part(end)
        pages = [pool.find(key) for pool in self._shard._pools]
        assert None not in pages
        self._fill([(page, slice(end % self._shard.page_size, None)) for page in pages], value)

    def _fill(self, places: Sequence[tuple[object, ...]], value: float) -> None:
        model = self._engine._runner.model
        with model.dispatch_lock:
            model.kv = tuple(
                pool.at[places[group]].set(jnp.asarray(value, pool.dtype))
                for pool, group in zip(model.kv, self._groups, strict=True)
            )

    @contextmanager
    def watched(self) -> Iterator[list[tuple[int, ...]]]:
        """Yield a list that gets the pages of every running request after each step, by group."""
        scheduler = self._engine._scheduler
        schedule, held = scheduler.schedule, []

        def watch() -> object:
            decided = schedule()
            held.extend(
                tuple(sum(page != NO_PAGE for page in pages) for pages in running.table.pages)
                for running in scheduler._running.values()
            )
            return decided

        scheduler.schedule = watch  # type: ignore[method-assign, assignment]
        try:
            yield held
        finally:
            scheduler.schedule = schedule  # type: ignore[method-assign]
