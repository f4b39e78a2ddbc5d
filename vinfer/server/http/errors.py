"""Errors as clients see them: the error object, the status, and the headers that control retries.

Pure functions. A body never contains more than a VinferError's message; a 500 contains only the request id.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from vinfer.errors import (
    AuthenticationError,
    BodyTooLargeError,
    MethodNotAllowedError,
    RequestError,
    RequestTimeoutError,
    VinferError,
)
from vinfer.server.answers.bodies import ErrorBody
from vinfer.server.answers.message_types import (
    AnthropicError,
    AnthropicErrorBody,
    AnthropicErrorCode,
    AnthropicErrorType,
)

_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES: Mapping[int, AnthropicErrorType] = {
    400: "invalid_request_error",
    405: "invalid_request_error",
    415: "invalid_request_error",
    431: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# By field: Anthropic's clients then do without it.
_ANTHROPIC_CODES: Mapping[str | None, AnthropicErrorCode] = {"thread": "thread_unsupported_request"}


def as_vinfer_error(error: Exception) -> VinferError | None:
    """Return the corresponding VinferError; None for an unexpected error."""
    if isinstance(error, VinferError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = _sorted_methods(error)
        return MethodNotAllowedError(f"this route does not allow that method: use {allowed}")
    return None


def error_object(error: Exception, request_id: str) -> ErrorBody:
    """Return an error in OpenAI's format."""
    known = as_vinfer_error(error)
    if known is None or known.status == 500:
        message = f"internal error: see the server's log for request id {request_id}"
        kind, param, code = VinferError.type, None, None if known is None else known.code
    else:
        message, kind, param, code = known.message, known.type, known.param, known.code
    return {
        "error": {"message": message, "type": kind, "param": param, "code": code, "request_id": request_id}
    }


def anthropic_error_object(error: Exception, request_id: str) -> AnthropicErrorBody:
    """Return an error in Anthropic's format."""
    known = as_vinfer_error(error)
    written: AnthropicError = {
        "type": "api_error",
        "message": error_object(error, request_id)["error"]["message"],
    }
    if known is not None:
        written["type"] = _ANTHROPIC_TYPES.get(known.status, "api_error")
        if known.param in _ANTHROPIC_CODES:
            written["details"] = {"error_code": _ANTHROPIC_CODES[known.param]}
    return {"type": "error", "error": written, "request_id": request_id}


def is_anthropic(path: str) -> bool:
    """Return whether a path belongs to Anthropic's API, which has its own error format."""
    return path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/")


def error_response(error: Exception, request_id: str, path: str) -> JSONResponse:
    """Build the response for an error; `path` is that of the request."""
    known = as_vinfer_error(error)
    status = 500 if known is None else known.status
    written: Callable[[Exception, str], ErrorBody | AnthropicErrorBody]
    written = anthropic_error_object if is_anthropic(path) else error_object
    response = JSONResponse(written(error, request_id), status)
    response.headers.update(_headers(error, known))
    return response


def _headers(error: Exception, known: VinferError | None) -> dict[str, str]:
    headers: dict[str, str] = {}
    if known is None:
        return headers
    if known.retry_after_seconds is not None:
        headers["Retry-After"] = str(math.ceil(known.retry_after_seconds))
        headers["retry-after-ms"] = str(round(known.retry_after_seconds * 1000))
    # The same request would fail in the same way again, but a slow one may succeed.
    if isinstance(known, RequestError) and not isinstance(known, RequestTimeoutError):
        headers["x-should-retry"] = "false"
    if isinstance(known, AuthenticationError):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(known, MethodNotAllowedError) and isinstance(error, HTTPException):
        headers["Allow"] = _sorted_methods(error)
    if isinstance(known, BodyTooLargeError):
        # The rest of the body is not worth reading.
        headers["Connection"] = "close"
    return headers


def _sorted_methods(error: HTTPException) -> str:
    allowed = (error.headers or {}).get("Allow", "")
    return ", ".join(sorted(allowed.split(", ")))
