"""Errors as clients see them: OpenAI's error object, the status, and the headers that control retries.

Pure functions. A body never contains more than a VinferError's message; a 500 contains only the request id.
"""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from vinfer.errors import (
    AuthenticationError,
    BodyTooLargeError,
    MethodNotAllowedError,
    NotFoundError,
    RequestError,
    RequestTimeoutError,
    VinferError,
)


def as_vinfer_error(error: Exception) -> VinferError | None:
    """Return the corresponding VinferError; None for an unexpected error."""
    if isinstance(error, VinferError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 404:
            return NotFoundError("no such route: GET /v1/models lists what is served")
        if error.status_code == 405:
            allowed = _sorted_methods(error)
            return MethodNotAllowedError(f"this route does not allow that method: use {allowed}")
    return None


def error_object(error: Exception, request_id: str) -> dict[str, Any]:
    """Return an error in OpenAI's format."""
    known = as_vinfer_error(error)
    if known is None or known.status == 500:
        message = f"internal error: see the server's log for request id {request_id}"
        code = None if known is None else known.code
        body = {"message": message, "type": VinferError.type, "param": None, "code": code}
    else:
        body = {"message": known.message, "type": known.type, "param": known.param, "code": known.code}
    return {"error": {**body, "request_id": request_id}}


def error_response(error: Exception, request_id: str) -> JSONResponse:
    """Build the response for an error."""
    known = as_vinfer_error(error)
    status = 500 if known is None else known.status
    response = JSONResponse(error_object(error, request_id), status)
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
