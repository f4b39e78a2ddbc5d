"""What a route takes and returns, for the app, `/openapi.json` and `/v1/capabilities`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from typing_extensions import TypeAliasType

from vinfer.errors import VinferError
from vinfer.server.answers.bodies import ErrorBody
from vinfer.server.fields.form import RequestForm
from vinfer.server.services import Services

AnswerType = type[Any] | TypeAliasType
Handler = Callable[[Services, HttpRequest], Coroutine[Any, Any, Any]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route.

    Attributes:
        handler: answers a request; its docstring begins with the route's summary.
        answer: type of the response body; None if `media_type` alone describes it.
        errors: the errors that it may answer with, each with its status.
        forms: the forms that the request body may have; empty if it takes no body.
        event: type of each event of a stream; None if the route does not stream.
        names_events: each event is named after its `type`, and the last one says how the stream ended.
        query_names_model: the query has a `model` parameter.
        not_ready: type of the body of a 503 that is not an error.
        error: type of the body of every error.
    """

    handler: Handler
    answer: AnswerType | None
    errors: tuple[type[VinferError], ...]
    forms: tuple[RequestForm[Any], ...] = ()
    event: AnswerType | None = None
    names_events: bool = False
    query_names_model: bool = False
    not_ready: AnswerType | None = None
    error: AnswerType = ErrorBody
    media_type: str = "application/json"

    @property
    def summary(self) -> str:
        """What the route does, in one line."""
        return (self.handler.__doc__ or "").partition("\n")[0].removesuffix(".")


Operations = Mapping[tuple[str, str], Operation]
"""The routes by method and path."""
