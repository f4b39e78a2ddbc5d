"""The models of a config in this process: loads them, and runs the server's app on an event loop of its own.

The loop has a thread of its own, so that callers may block, or have an event loop themselves.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from vinfer.config import load_source
from vinfer.errors import EngineError
from vinfer.launch.bundles import code_cache_dir
from vinfer.launch.devices import target_devices
from vinfer.launch.group.leader import refuse_group
from vinfer.launch.loader import Loader, model_table
from vinfer.launch.progress.lines import ProgressLines
from vinfer.launch.terminal import quiet_xla
from vinfer.llm.asgi import Exchange
from vinfer.server.app import create_app

T = TypeVar("T")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class Host:
    """Loaded models, and the loop that serves them.

    Args:
        source, overrides, devices, shows_progress: see `vinfer.load`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        overrides: Sequence[str],
        devices: str | None,
        shows_progress: bool,
    ) -> None:
        self._config = load_source(source, overrides=overrides, environ=os.environ)
        refuse_group(self._config, os.environ, what="vinfer.load")
        self._table = model_table(self._config)
        self._loader = Loader(
            self._config,
            self._table,
            wanted=target_devices(devices),
            code_cache=code_cache_dir(self._config, os.environ),
            show=ProgressLines(_say) if shows_progress else lambda *_: None,
        )
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="vinfer-load", daemon=True
        )
        self._is_up = threading.Event()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive() and not self._end.is_set()

    @property
    def model_names(self) -> tuple[str, ...]:
        return tuple(model.name for model in self._config.models)

    def start(self) -> None:
        """Load the models, which may build bundles; blocks until requests can be sent.

        Raises:
            VinferError: as when the server starts.
        """
        quiet_xla()
        self._loader.run()
        if self._table.failure is not None:
            self._loader.stop()
            raise self._table.failure
        # Whoever is in this process needs no API key.
        self._app = create_app(
            self._config.server, self._table, compile_count=self._loader.num_post_ready_compiles
        )
        self._thread.start()
        self._is_up.wait()

    def stop(self) -> None:
        """End the requests in flight, the loop and the engines."""
        if self._thread.is_alive():
            self._table.drain()
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()
        self._loader.stop()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop of the app.

        Raises:
            EngineError: the models are no longer loaded.
        """
        if not self.is_running:
            work.close()
            raise EngineError("the models are no longer loaded: use them inside the block of vinfer.load")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def exchange(self, path: str, body: dict[str, Any]) -> Exchange:
        """Return a request to the app; call it on the loop."""
        return Exchange(self._app, path, body)

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with self._app.router.lifespan_context(self._app):
            self._is_up.set()
            await self._end.wait()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
