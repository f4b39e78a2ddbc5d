"""What every route handler is given: the config, the models, the worker threads, metrics and deadlines.

Built once by `create_app` and used on the event loop. It knows no routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from vinfer.config import ServerConfig
from vinfer.errors import NotReadyError, RequestTimeoutError
from vinfer.server.api_keys import ApiKey
from vinfer.server.intake import Intake
from vinfer.server.metrics import ServerMetrics
from vinfer.server.model_table import ModelTable
from vinfer.server.page import PageFile

if TYPE_CHECKING:
    from vinfer.images import ImageFetcher

P = ParamSpec("P")
T = TypeVar("T")


def preparing_bytes(config: ServerConfig) -> int:
    """Return the limit of `Intake`: at least one body of the largest size."""
    return max(config.max_preparing_bytes, config.max_body_bytes)


class Deadlines:
    """The deadlines of the requests in flight; a drain that takes too long moves them all to now."""

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        self._running: set[asyncio.Timeout] = set()
        self._expired_early = False

    def expire_all(self) -> None:
        """End every request in flight now. Called on the event loop."""
        self._expired_early = True
        for timeout in self._running:
            timeout.reschedule(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def limit(self, elapsed_seconds: float, own_seconds: float | None = None) -> AsyncIterator[None]:
        """Limit what runs inside to the time that a request has left.

        Args:
            elapsed_seconds: how long ago the request arrived.
            own_seconds: the longest time that the client asked for; None for the server's own limit.

        Raises:
            RequestTimeoutError: the time is up.
            NotReadyError: the server shut down before the request was finished.
        """
        max_seconds = self.max_seconds if own_seconds is None else min(own_seconds, self.max_seconds)
        timeout = asyncio.timeout(max(max_seconds - elapsed_seconds, 0.0))
        try:
            async with timeout:
                self._running.add(timeout)
                try:
                    yield
                finally:
                    self._running.discard(timeout)
        except TimeoutError:
            if not timeout.expired():
                raise
            if self._expired_early:
                raise NotReadyError("the server shut down before this request was finished") from None
            is_own = max_seconds != self.max_seconds
            limit = (
                "its X-Request-Deadline allows, in seconds" if is_own else "server.request_timeout_seconds"
            )
            raise RequestTimeoutError(
                f"the request took longer than {limit}, {max_seconds:g}: ask for fewer tokens or raise it"
            ) from None


@dataclasses.dataclass(kw_only=True)
class Services:
    """The server's parts, as route handlers need them.

    Attributes:
        config, keys: change only by `reload`, between two requests.
        page: the files of the page by name; empty if it is off.
    """

    config: ServerConfig
    models: ModelTable
    workers: ThreadPoolExecutor
    parser: ThreadPoolExecutor
    metrics: ServerMetrics
    deadlines: Deadlines
    intake: Intake
    keys: tuple[ApiKey, ...] = ()
    page: Mapping[str, PageFile] = dataclasses.field(default_factory=dict)
    num_worker_calls: int = 0

    @functools.cached_property
    def image_fetcher(self) -> ImageFetcher:
        """The fetcher of images by URL, built when it is first needed."""
        from vinfer.images import ImageFetcher

        return ImageFetcher(self.config.images)

    def reload(self, config: ServerConfig, keys: Sequence[ApiKey]) -> None:
        """Take new settings and API keys for the requests that follow. Called on the event loop."""
        self.config = config
        self.use_keys(keys)
        self.deadlines.max_seconds = config.request_timeout_seconds
        self.intake.max_bytes = preparing_bytes(config)
        self.__dict__.pop("image_fetcher", None)

    def use_keys(self, keys: Sequence[ApiKey]) -> None:
        """Take API keys, and divide what there is among their owners."""
        self.keys = tuple(keys)
        self.intake.has_several_tenants = len(keys) > 1

    async def in_worker(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run CPU-bound work in a worker thread, off the event loop."""
        call = functools.partial(function, *args, **kwargs)
        self.num_worker_calls += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.workers, call)
        finally:
            self.num_worker_calls -= 1

    async def in_parser(self, function: Callable[[], T]) -> T:
        """Run work that holds the interpreter's lock, one piece at a time.

        More at once would not end sooner, but keep the event loop waiting for the lock.
        """
        return await asyncio.get_running_loop().run_in_executor(self.parser, function)
