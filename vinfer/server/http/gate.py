"""The first and last step of every request: id, drain, API key, error mapping, log line and metrics.

One ASGI middleware around all routes, so that no new route can bypass it. It logs no text from the client:
not the path, not the query, and no header but the request id. At debug level it names ignored keys.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vinfer.errors import NotReadyError, RequestError, RequestTimeoutError
from vinfer.server.api_keys import MAX_PRIORITY
from vinfer.server.http.access_log import log_access
from vinfer.server.http.auth import PUBLIC_PATHS, find_key, public_paths
from vinfer.server.http.browser import check_host, is_for_page
from vinfer.server.http.context import ClientLeftError, RequestContext
from vinfer.server.http.errors import as_vinfer_error, error_response, is_anthropic
from vinfer.server.services import Services

if TYPE_CHECKING:
    from vinfer.server.http.traces import RequestTraces

logger = logging.getLogger(__name__)

# nginx's number for "the client closed the connection"; logged and counted, never sent.
CLIENT_LEFT_STATUS = 499
_UNIX_TIME = re.compile(rb"[0-9]{1,12}(\.[0-9]{1,9})?")
_OPEN_WHILE_DRAINING = PUBLIC_PATHS | {"/metrics"}
# A key whose line says nothing may let others go first, but not overtake them.
_PRIORITIES_OF_ONE_OF_SEVERAL = (0, MAX_PRIORITY)
_OUTCOMES = {
    401: "unauthorized",
    403: "unauthorized",
    408: "timeout",
    429: "queue_full",
    499: "aborted",
    503: "unavailable",
}


class Gate:
    """ASGI middleware; see the module.

    Args:
        routes: the app's.
        traces: records requests for OpenTelemetry; None if that is off.
    """

    def __init__(
        self,
        app: ASGIApp,
        services: Services,
        routes: Sequence[BaseRoute],
        traces: RequestTraces | None = None,
    ) -> None:
        self._app = app
        self._services = services
        self._models = services.models
        self._routes = routes
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext.begin(scope)
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = context.request_id
                if is_anthropic(scope["path"]):
                    headers["request-id"] = context.request_id
                _report(context, headers)
                if self._models.leaving:
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._serve(scope, receive, send_with_headers, context)
        except (ClientLeftError, ClientDisconnect):
            status = CLIENT_LEFT_STATUS
        except Exception as error:  # noqa: BLE001  the last resort: the client gets an answer in any case
            log_failure(error, context.request_id)
            if status:
                # Too late for an error response; uvicorn closes the connection after an incomplete one.
                context.failed = True
            else:
                response = error_response(error, context.request_id, scope["path"])
                await response(scope, receive, send_with_headers)
        finally:
            self._services.intake.release(context)
            self._account(scope, context, status)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        if self._models.draining and scope["path"] not in _OPEN_WHILE_DRAINING:
            raise NotReadyError("the server is shutting down: try again")
        keys = self._services.keys
        wants_page = bool(self._services.page) and is_for_page(scope)
        public = public_paths(self._services.config)
        # A foreign site has no API key, and a file of the page needs none.
        if wants_page or not (keys or scope["path"] in public):
            check_host(scope, self._services.config)
        key = None if wants_page else find_key(scope, keys, public)
        if key is not None:
            context.tenant, context.key_name = key.digest.hex(), key.name
            if key.priorities is not None:
                context.priorities = key.priorities
            elif len(keys) > 1:
                context.priorities = _PRIORITIES_OF_ONE_OF_SEVERAL
        context.own_seconds = _own_seconds(scope)
        await self._app(scope, receive, send)

    def _account(self, scope: Scope, context: RequestContext, status: int) -> None:
        route = self._route_of(scope)
        seconds = time.monotonic() - context.arrival_seconds
        method = scope["method"] if scope["method"].isalpha() else "?"
        is_probe = scope["path"] in PUBLIC_PATHS
        if self._traces is not None and not is_probe:
            context.trace_id = self._traces.record(
                context, scope["headers"], method=method[:16], route=route, status=status
            )
        log_access(context, method[:16], route, status, seconds, is_probe=is_probe)
        if context.ignored:
            self._services.metrics.count_ignored_keys(len(context.ignored))
            logger.debug(
                "request %s: ignored keys: %s", context.request_id, ", ".join(context.ignored_names) or "?"
            )
        if route.startswith("/v1/"):
            metrics = self._services.metrics
            metrics.count_request(context.model_name, route, _outcome(context, status))
            if context.key_name:
                usage = context.usage
                metrics.count_key(context.key_name, usage.num_prompt_tokens, usage.num_completion_tokens)

    def _route_of(self, scope: Scope) -> str:
        """Return the route's pattern, not the path, which the client chooses; also of a refused request."""
        for route in self._routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "other"


def _own_seconds(scope: Scope) -> float | None:
    """Return how many seconds are left until `X-Request-Deadline`, a Unix time; None without one.

    Raises:
        RequestError: it is not a time.
        RequestTimeoutError: it has passed.
    """
    sent = dict(scope["headers"]).get(b"x-request-deadline")
    if sent is None:
        return None
    if not _UNIX_TIME.fullmatch(sent):
        raise RequestError(
            "X-Request-Deadline must be a Unix time in seconds, such as 1767225600.5: "
            "correct it or leave it out"
        )
    seconds = float(sent) - time.time()
    if seconds <= 0:
        raise RequestTimeoutError("X-Request-Deadline has passed: send a later one, and check the clocks")
    return seconds


def _report(context: RequestContext, headers: MutableHeaders) -> None:
    """Say in the headers where the answer differs from what was asked for."""
    if context.ignored_names:
        headers["x-vinfer-ignored"] = ", ".join(context.ignored_names)
    if context.max_tokens is not None:
        headers["x-vinfer-max-tokens"] = str(context.max_tokens)


def log_failure(error: Exception, request_id: str) -> None:
    """Log a failure of the server; a refused request leaves only its access line."""
    known = as_vinfer_error(error)
    if known is None:
        # Log where it happened, not the exception's text, which may quote a prompt.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("request %s failed: %s\n%s", request_id, type(error).__name__, frames)
    elif known.status == 500:
        # One line: an engine that dies logs where, once for all of its requests.
        logger.error("request %s failed: %s", request_id, known.message)


def _outcome(context: RequestContext, status: int) -> str:
    if status in _OUTCOMES:
        return _OUTCOMES[status]
    if context.failed or status >= 500 or status == 0:
        return "error"
    return "refused" if status >= 400 else "success"
