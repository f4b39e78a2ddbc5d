"""The app, assembled from its parts. Knows that routes exist, not what they do."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from vinfer.config import ServerConfig
from vinfer.errors import ConfigError
from vinfer.server.api_keys import ApiKey
from vinfer.server.document.operation import Handler
from vinfer.server.http.browser import serves_page
from vinfer.server.http.context import RequestContext
from vinfer.server.http.errors import error_response
from vinfer.server.http.gate import Gate
from vinfer.server.http.unknown_route import unknown_route
from vinfer.server.intake import Intake
from vinfer.server.metrics import ServerMetrics
from vinfer.server.model_table import ModelTable
from vinfer.server.page import PAGE_PATH, read_page
from vinfer.server.route_table import ROUTES
from vinfer.server.routes import page
from vinfer.server.services import Deadlines, Services, preparing_bytes

if TYPE_CHECKING:
    from vinfer.server.http.traces import RequestTraces

EXPOSED_HEADERS = (
    *("x-request-id", "x-vinfer-ignored", "x-vinfer-max-tokens"),
    *("retry-after", "retry-after-ms", "x-should-retry"),
)
"""The headers that scripts of other origins may read."""
METRICS = ("GET", "/metrics")
PAGE_ROUTE = ("GET", f"{PAGE_PATH}{{file}}", page.page_file)
"""Of the page; no part of the API."""


def create_app(
    config: ServerConfig,
    model_table: ModelTable,
    keys: Sequence[ApiKey] = (),
    *,
    compile_count: Callable[[], int] = lambda: 0,
) -> Starlette:
    """Build the app; models may become ready later.

    Args:
        keys: the API keys, from `read_api_keys`; without any, requests need none.
        compile_count: returns how many programs were compiled after the server was ready, for `/metrics`.

    Raises:
        ConfigError: a part that the config asks for is not installed.
    """
    services = Services(
        config=config,
        models=model_table,
        workers=ThreadPoolExecutor(config.max_workers, thread_name_prefix="vinfer-worker"),
        parser=ThreadPoolExecutor(1, thread_name_prefix="vinfer-parser"),
        metrics=ServerMetrics(model_table, compile_count, config.metrics_names),
        intake=Intake(preparing_bytes(config)),
        deadlines=Deadlines(config.request_timeout_seconds),
        page=read_page() if serves_page(config) else {},
    )

    services.use_keys(keys)
    traces = _traces(config.traces_endpoint)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        for pool in (services.workers, services.parser):
            pool.shutdown(wait=False, cancel_futures=True)
        if traces is not None:
            traces.close()

    table = [
        (*key, operation.handler) for key, operation in ROUTES.items() if config.metrics or key != METRICS
    ]
    routes = [
        Route(path, functools.partial(handler, services), methods=[method], name=path)
        for method, path, handler in (*table, *([PAGE_ROUTE] if services.page else []))
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            *_cross_origin(config),
            Middleware(Gate, services=services, routes=routes, traces=traces),
        ],
        exception_handlers={HTTPException: functools.partial(_refuse, table)},
        lifespan=lifespan,
    )
    # `/v1/models/` is not a route, and many clients lose the body when a POST is redirected.
    app.router.redirect_slashes = False
    app.state.services = services
    app.state.routes = ROUTES
    return app


def _traces(endpoint: str | None) -> RequestTraces | None:
    """Return what traces requests; OpenTelemetry is loaded only for that.

    Raises:
        ConfigError: it is not installed.
    """
    if endpoint is None:
        return None
    try:
        from vinfer.server.http.traces import otlp_traces
    except ImportError as error:
        raise ConfigError(
            f"server.traces_endpoint is {endpoint}, but {error.name} is not installed: run "
            "pip install 'vinfer[otel]', or leave the key out"
        ) from None
    return otlp_traces(endpoint)


def _cross_origin(config: ServerConfig) -> list[Middleware]:
    """Return what lets web pages of other origins call the API; nothing by default.

    It comes before the gate, because a browser's preflight has no API key.
    """
    if not config.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    ]


async def _refuse(
    routes: Sequence[tuple[str, str, Handler]], request: HttpRequest, error: Exception
) -> Response:
    known: Exception = error
    if isinstance(error, HTTPException) and error.status_code == 404:
        known = unknown_route(
            request.method, request.scope["path"], [(method, path) for method, path, _ in routes]
        )
    return error_response(known, RequestContext.of(request.scope).request_id, request.scope["path"])
