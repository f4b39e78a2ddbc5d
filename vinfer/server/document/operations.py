"""What each route takes and returns, by method and path, for `/openapi.json` and `/v1/capabilities`.

The forms of a body are those that the routes parse with. A test compares the table with `app.ROUTES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from vinfer.errors import (
    AuthenticationError,
    BodyTooLargeError,
    HeadersTooLargeError,
    HostError,
    MediaTypeError,
    ModelNotFoundError,
    NotReadyError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    VinferError,
)
from vinfer.server.document import answers, capability_types, message_types, response_types
from vinfer.server.fields.anthropic.messages import MESSAGES, MESSAGES_COUNT
from vinfer.server.fields.chat import CHAT
from vinfer.server.fields.completions import COMPLETION
from vinfer.server.fields.count import COUNT_MESSAGES, COUNT_TEXT
from vinfer.server.fields.embeddings import EMBEDDING
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.responses.body import RESPONSES
from vinfer.server.fields.tokenization import DETOKENIZE, TOKENIZE_MESSAGES, TOKENIZE_TEXT

_ANY_ROUTE = (RequestError, RequestTimeoutError, HeadersTooLargeError, VinferError)
_MODEL = (*_ANY_ROUTE, AuthenticationError, HostError, ModelNotFoundError, NotReadyError)
_BODY = (*_MODEL, BodyTooLargeError, MediaTypeError, QueueFullError)
_PLAIN = (*_ANY_ROUTE, AuthenticationError, HostError, NotReadyError)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One route.

    Attributes:
        answer: type of the response body; None if `media_type` alone describes it.
        errors: the errors that it may answer with, each with its status.
        forms: the forms that the request body may have; empty if it takes no body.
        event: type of each event of a stream; None if the route does not stream.
        names_events: each event is named after its `type`, and the last one says how the stream ended.
        query_names_model: the query has a `model` parameter.
        not_ready: type of the body of a 503 that is not an error.
        error: type of the body of every error.
    """

    summary: str
    answer: type[BaseModel] | None
    errors: tuple[type[VinferError], ...]
    forms: tuple[RequestForm[Any], ...] = ()
    event: type[BaseModel] | None = None
    names_events: bool = False
    query_names_model: bool = False
    not_ready: type[BaseModel] | None = None
    error: type[BaseModel] = answers.ErrorBody
    media_type: str = "application/json"


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        summary="Answer a conversation, whole or streamed",
        forms=(CHAT,),
        answer=answers.ChatCompletion,
        event=answers.ChatChunk,
        errors=_BODY,
    ),
    ("POST", "/v1/completions"): Operation(
        summary="Complete one or more prompts, whole or streamed",
        forms=(COMPLETION,),
        answer=answers.Completion,
        event=answers.CompletionChunk,
        errors=_BODY,
    ),
    ("POST", "/v1/responses"): Operation(
        summary="Answer a conversation with items, whole or as events; stateless",
        forms=(RESPONSES,),
        answer=response_types.Response,
        event=response_types.ResponseEvent,
        names_events=True,
        errors=_BODY,
    ),
    ("POST", "/v1/messages"): Operation(
        summary="Answer a conversation in Anthropic's form, whole or as events; stateless",
        forms=(MESSAGES,),
        answer=message_types.Message,
        event=message_types.MessageEvent,
        names_events=True,
        error=message_types.AnthropicErrorBody,
        errors=_BODY,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        summary="Count the tokens of a conversation in Anthropic's form",
        forms=(MESSAGES_COUNT,),
        answer=message_types.InputTokens,
        error=message_types.AnthropicErrorBody,
        errors=_BODY,
    ),
    ("POST", "/v1/embeddings"): Operation(
        summary="Turn one or more texts into vectors",
        forms=(EMBEDDING,),
        answer=answers.EmbeddingList,
        errors=_BODY,
    ),
    ("POST", "/v1/count_tokens"): Operation(
        summary="Count the tokens of a text or a conversation",
        forms=(COUNT_TEXT, COUNT_MESSAGES),
        answer=answers.TokenCount,
        errors=_BODY,
    ),
    ("GET", "/v1/models"): Operation(
        summary="List the served models", answer=answers.ModelList, errors=_PLAIN
    ),
    ("GET", "/v1/models/{id:path}"): Operation(
        summary="Describe one model; its id may contain slashes", answer=answers.ModelInfo, errors=_MODEL
    ),
    ("GET", "/v1/capabilities"): Operation(
        summary="List per model the fields applied, refused and accepted without effect, and the limits",
        answer=capability_types.Capabilities,
        errors=_PLAIN,
    ),
    ("POST", "/tokenize"): Operation(
        summary="Return the token ids that a text or a conversation has as a prompt",
        forms=(TOKENIZE_TEXT, TOKENIZE_MESSAGES),
        answer=answers.Tokenized,
        errors=_BODY,
    ),
    ("POST", "/detokenize"): Operation(
        summary="Return the text of token ids", forms=(DETOKENIZE,), answer=answers.Detokenized, errors=_BODY
    ),
    ("GET", "/tokenizer_info"): Operation(
        summary="Describe a model's tokenizer, its chat template included",
        query_names_model=True,
        answer=answers.TokenizerInfo,
        errors=(*_MODEL, RequestError),
    ),
    ("GET", "/liveness"): Operation(
        summary="Report that the process is alive", answer=answers.Liveness, errors=_ANY_ROUTE
    ),
    ("GET", "/readiness"): Operation(
        summary="Report whether every model is being served, or else their progress",
        answer=answers.Readiness,
        not_ready=answers.Readiness,
        errors=_ANY_ROUTE,
    ),
    ("GET", "/health"): Operation(
        summary="Report whether every model is being served",
        answer=answers.Health,
        not_ready=answers.Health,
        errors=_ANY_ROUTE,
    ),
    ("GET", "/"): Operation(summary="Say where to go from here", answer=answers.Welcome, errors=_PLAIN),
    ("GET", "/version"): Operation(summary="Return vinfer's version", answer=answers.Version, errors=_PLAIN),
    ("GET", "/openapi.json"): Operation(summary="Return this document", answer=None, errors=_PLAIN),
    ("GET", "/metrics"): Operation(
        summary="Return the metrics for Prometheus",
        answer=None,
        media_type="text/plain",
        errors=(*_ANY_ROUTE, AuthenticationError, HostError),
    ),
}
