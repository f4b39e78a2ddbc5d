"""The admin routes. They take no path and no code, only a level and a number of seconds. Event loop.

They know neither JAX nor the terminal: what does is passed in.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import threading
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from vinfer.errors import QueueFullError, RequestError
from vinfer.server.admin.stacks import task_stacks, thread_stacks
from vinfer.server.http.body import parse_json_object
from vinfer.server.http.errors import as_vinfer_error, error_response
from vinfer.server.services import Services

logger = logging.getLogger(__name__)

LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_PROFILE_SECONDS = 60
_MAX_BODY_BYTES = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdminActions:
    """What the admin routes do outside of the server.

    Attributes:
        set_log_level: takes one of `LOG_LEVELS`.
        profile: runs JAX's profiler for some seconds, on the calling thread, and returns the directory
            written; None without `server.profile_dir`.
    """

    set_log_level: Callable[[str], None]
    profile: Callable[[float], str] | None = None


def admin_app(services: Services, actions: AdminActions) -> Starlette:
    """Return the app of the admin socket."""
    admin = Admin(services, actions)
    return Starlette(
        routes=[
            Route(path, functools.partial(_answer, functools.partial(act, admin)), methods=[method])
            for method, path, act in ADMIN_ROUTES
        ]
    )


class Admin:
    """The handlers of the admin routes."""

    def __init__(self, services: Services, actions: AdminActions) -> None:
        self._services = services
        self._actions = actions
        self._profiling = threading.Lock()

    async def models(self, request: HttpRequest) -> Response:
        """Return how each model is, with its error, which /readiness does not show."""
        table = self._services.models
        num_restarts = table.num_restarts
        return JSONResponse(
            {
                "phase": table.phase,
                "models": [
                    {
                        "name": status.name,
                        "phase": status.phase,
                        "required": table.is_required(status.name),
                        "restarts": num_restarts[status.name],
                        "error": None if status.error is None else status.error.message,
                    }
                    for status in table.statuses
                ],
            }
        )

    async def caches(self, request: HttpRequest) -> Response:
        """Return the figures of each model's caches."""
        return JSONResponse(
            {
                model.name: {
                    "kv_cache": {
                        "usage_fraction": stats.kv_cache_usage_fraction,
                        "preemptions": stats.num_preemptions_total,
                    },
                    "prefixes": {
                        "query_tokens": stats.prefix_cache_queries_total,
                        "hit_tokens": stats.prefix_cache_hits_total,
                    },
                    "images": {
                        "usage_fraction": stats.mm_cache_usage_fraction,
                        "queries": stats.mm_cache_queries_total,
                        "hits": stats.mm_cache_hits_total,
                    },
                    "grammars": {"kept": model.grammars.num_kept, "waiting": model.grammars.num_waiting},
                }
                for model in self._services.models.served_models
                for stats in (model.engine.stats(),)
            }
        )

    async def stacks(self, request: HttpRequest) -> Response:
        """Return the stacks of all threads and tasks."""
        return PlainTextResponse(f"{thread_stacks()}\n{task_stacks()}")

    async def drain(self, request: HttpRequest) -> Response:
        """Do what SIGTERM does."""
        logger.warning("admin: draining")
        self._services.models.leave()
        return JSONResponse({"phase": self._services.models.phase})

    async def log_level(self, request: HttpRequest) -> Response:
        """Set the level of the log, until SIGHUP or the next start."""
        level = await _field(request, "level")
        if level not in LOG_LEVELS:
            raise RequestError(f"level must be one of {', '.join(LOG_LEVELS)}: correct it", param="level")
        self._actions.set_log_level(str(level))
        logger.warning("admin: log level is now %s", level)
        return JSONResponse({"level": level})

    async def profile(self, request: HttpRequest) -> Response:
        """Profile the devices for some seconds."""
        if self._actions.profile is None:
            raise RequestError("server.profile_dir is not set: set it and restart the server")
        seconds = await _field(request, "seconds")
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not 0 < seconds <= MAX_PROFILE_SECONDS:
            raise RequestError(
                f"seconds must be a number above 0, at most {MAX_PROFILE_SECONDS}: correct it",
                param="seconds",
            )
        if not self._profiling.acquire(blocking=False):
            raise QueueFullError("another profile is being taken: try again later")
        try:
            logger.warning("admin: profiling for %g s", seconds)
            directory = await asyncio.to_thread(self._actions.profile, float(seconds))
        finally:
            self._profiling.release()
        return JSONResponse({"directory": directory})


ADMIN_ROUTES: tuple[tuple[str, str, Callable[[Admin, HttpRequest], Coroutine[Any, Any, Response]]], ...] = (
    ("GET", "/models", Admin.models),
    ("GET", "/caches", Admin.caches),
    ("GET", "/stacks", Admin.stacks),
    ("POST", "/drain", Admin.drain),
    ("POST", "/log-level", Admin.log_level),
    ("POST", "/profile", Admin.profile),
)


async def _field(request: HttpRequest, name: str) -> Any:
    """Return the only field of a request's body."""
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _MAX_BODY_BYTES:
            raise RequestError(f"body is longer than {_MAX_BODY_BYTES} bytes: send only {name}")
    body = parse_json_object(bytes(raw))
    if body.keys() != {name}:
        raise RequestError(f"body must have the key {name} and no other: correct it", param=name)
    return body[name]


async def _answer(
    act: Callable[[HttpRequest], Coroutine[Any, Any, Response]], request: HttpRequest
) -> Response:
    try:
        return await act(request)
    except Exception as error:
        request_id = uuid.uuid4().hex
        if as_vinfer_error(error) is None:
            logger.exception("admin request %s failed", request_id)
        return error_response(error, request_id, request.scope["path"])
