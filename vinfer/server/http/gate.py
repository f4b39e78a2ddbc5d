"""The first and last step of every request: id, drain, API key, error mapping, log line and metrics.

One ASGI middleware around all routes, so that no new route can bypass it. It logs no text from the client:
not the path, not the query, and no header but the request id. At debug level it names ignored keys.
"""

from __future__ import annotations

import logging
import time
import traceback

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vinfer.errors import NotReadyError
from vinfer.server.http.auth import PUBLIC_PATHS, Authenticator
from vinfer.server.http.context import ClientLeftError, RequestContext
from vinfer.server.http.errors import as_vinfer_error, error_response, is_anthropic
from vinfer.server.metrics import ServerMetrics
from vinfer.server.model_table import ModelTable

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("vinfer.access")

# nginx's number for "the client closed the connection"; logged and counted, never sent.
CLIENT_LEFT_STATUS = 499
_OPEN_WHILE_DRAINING = PUBLIC_PATHS | {"/metrics"}
_OUTCOMES = {401: "unauthorized", 408: "timeout", 429: "queue_full", 499: "aborted", 503: "unavailable"}


class Gate:
    """ASGI middleware; see the module."""

    def __init__(
        self, app: ASGIApp, models: ModelTable, authenticator: Authenticator, metrics: ServerMetrics
    ) -> None:
        self._app = app
        self._models = models
        self._authenticator = authenticator
        self._metrics = metrics

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
                if self._models.draining:
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
            self._account(scope, context, status)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, context: RequestContext) -> None:
        if self._models.draining and scope["path"] not in _OPEN_WHILE_DRAINING:
            raise NotReadyError("the server is shutting down: try again")
        context.tenant = self._authenticator.check(scope)
        await self._app(scope, receive, send)

    def _account(self, scope: Scope, context: RequestContext, status: int) -> None:
        # The route's pattern, not the path, which the client chooses.
        route = getattr(scope.get("route"), "path", "other")
        seconds = time.monotonic() - context.arrival_seconds
        method = scope["method"] if scope["method"].isalpha() else "?"
        access_logger.info(
            "%s %s %d %.3fs request_id=%s", method[:16], route, status, seconds, context.request_id
        )
        if context.ignored:
            self._metrics.count_ignored_keys(len(context.ignored))
            logger.debug(
                "request %s: ignored keys: %s", context.request_id, ", ".join(context.ignored_names) or "?"
            )
        if route.startswith("/v1/"):
            self._metrics.count_request(context.model_name, _outcome(context, status))


def _report(context: RequestContext, headers: MutableHeaders) -> None:
    """Say in the headers where the answer differs from what was asked for."""
    if context.ignored_names:
        headers["x-vinfer-ignored"] = ", ".join(context.ignored_names)
    if context.max_tokens is not None:
        headers["x-vinfer-max-tokens"] = str(context.max_tokens)


def log_failure(error: Exception, request_id: str) -> None:
    """Log a failure of the server; a refused request leaves only its access line."""
    known = as_vinfer_error(error)
    if known is not None and known.status != 500:
        return
    # Log where it happened, not the exception's text, which may quote a prompt. Our own messages do not.
    frames = "".join(traceback.format_tb(error.__traceback__))
    what = known.message if known is not None else type(error).__name__
    logger.error("request %s failed: %s\n%s", request_id, what, frames)


def _outcome(context: RequestContext, status: int) -> str:
    if status in _OUTCOMES:
        return _OUTCOMES[status]
    if context.failed or status >= 500 or status == 0:
        return "error"
    return "refused" if status >= 400 else "success"
