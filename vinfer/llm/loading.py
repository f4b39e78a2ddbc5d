"""What `vinfer.load` returns: a block, in which the models are loaded. Knows no requests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vinfer.llm.host import Host
    from vinfer.llm.llm import LLM, AsyncLLM


class Loading:
    """A context manager of both kinds: `with` gives an `LLM`, `async with` an `AsyncLLM`.

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
        self._source = source
        self._overrides = overrides
        self._devices = devices
        self._shows_progress = shows_progress
        self._host: Host | None = None

    def __enter__(self) -> LLM:
        from vinfer.llm.llm import LLM

        return LLM(self._start())

    def __exit__(self, *_: object) -> None:
        self._stop()

    async def __aenter__(self) -> AsyncLLM:
        from vinfer.llm.llm import AsyncLLM

        return AsyncLLM(await asyncio.to_thread(self._start))

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._stop)

    def _start(self) -> Host:
        from vinfer.llm.host import Host

        host = Host(
            self._source,
            overrides=self._overrides,
            devices=self._devices,
            shows_progress=self._shows_progress,
        )
        host.start()
        self._host = host
        return host

    def _stop(self) -> None:
        if self._host is not None:
            self._host.stop()
            self._host = None
