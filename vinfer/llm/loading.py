"""What `vinfer.load` returns: a block, in which the models are loaded. Knows no requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vinfer.llm.host import Host
    from vinfer.llm.llm import LLM, AsyncLLM


class Loading:
    """A context manager of both kinds: `with` gives an `LLM`, `async with` an `AsyncLLM`.

    Args:
        make_host: returns the models, not loaded yet; called when a block begins.
    """

    def __init__(self, make_host: Callable[[], Host]) -> None:
        self._make_host = make_host
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
        host = self._make_host()
        host.start()
        self._host = host
        return host

    def _stop(self) -> None:
        if self._host is not None:
            self._host.stop()
            self._host = None
