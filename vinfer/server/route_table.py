"""The route table: what answers each route, and what it takes and returns. Knows not how they do it."""

from __future__ import annotations

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
from vinfer.server.answers import bodies, message_types, response_types
from vinfer.server.document import capabilities, capability_types, openapi
from vinfer.server.document.operation import Operation, Operations
from vinfer.server.fields.anthropic.messages import MESSAGES, MESSAGES_COUNT
from vinfer.server.fields.chat import CHAT
from vinfer.server.fields.completions import COMPLETION
from vinfer.server.fields.count import COUNT_MESSAGES, COUNT_TEXT
from vinfer.server.fields.embeddings import EMBEDDING
from vinfer.server.fields.responses.body import RESPONSES
from vinfer.server.fields.tokenization import DETOKENIZE, TOKENIZE_MESSAGES, TOKENIZE_TEXT
from vinfer.server.routes import (
    chat,
    completions,
    embeddings,
    health,
    messages,
    models,
    page,
    responses,
    tokenization,
)

_ANY_ROUTE = (RequestError, RequestTimeoutError, HeadersTooLargeError, VinferError)
_MODEL = (*_ANY_ROUTE, AuthenticationError, HostError, ModelNotFoundError, NotReadyError)
_BODY = (*_MODEL, BodyTooLargeError, MediaTypeError, QueueFullError)
_PLAIN = (*_ANY_ROUTE, AuthenticationError, HostError, NotReadyError)

ROUTES: Operations = {
    ("POST", "/v1/chat/completions"): Operation(
        handler=chat.chat_completions,
        forms=(CHAT,),
        answer=bodies.ChatCompletion,
        event=bodies.ChatChunk,
        errors=_BODY,
    ),
    ("POST", "/v1/completions"): Operation(
        handler=completions.completions,
        forms=(COMPLETION,),
        answer=bodies.Completion,
        event=bodies.CompletionChunk,
        errors=_BODY,
    ),
    ("POST", "/v1/responses"): Operation(
        handler=responses.responses,
        forms=(RESPONSES,),
        answer=response_types.Response,
        event=response_types.ResponseEvent,
        names_events=True,
        errors=_BODY,
    ),
    ("POST", "/v1/messages"): Operation(
        handler=messages.messages,
        forms=(MESSAGES,),
        answer=message_types.Message,
        event=message_types.MessageEvent,
        names_events=True,
        error=message_types.AnthropicErrorBody,
        errors=_BODY,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        handler=messages.count_tokens,
        forms=(MESSAGES_COUNT,),
        answer=message_types.InputTokens,
        error=message_types.AnthropicErrorBody,
        errors=_BODY,
    ),
    ("POST", "/v1/embeddings"): Operation(
        handler=embeddings.embeddings,
        forms=(EMBEDDING,),
        answer=bodies.EmbeddingList,
        errors=_BODY,
    ),
    ("POST", "/v1/count_tokens"): Operation(
        handler=models.count_tokens,
        forms=(COUNT_TEXT, COUNT_MESSAGES),
        answer=bodies.TokenCount,
        errors=_BODY,
    ),
    ("GET", "/v1/models"): Operation(handler=models.list_models, answer=bodies.ModelList, errors=_PLAIN),
    ("GET", "/v1/models/{id:path}"): Operation(
        handler=models.show_model,
        answer=bodies.ModelInfo,
        errors=_MODEL,
    ),
    ("GET", "/v1/capabilities"): Operation(
        handler=capabilities.capabilities,
        answer=capability_types.Capabilities,
        errors=_PLAIN,
    ),
    ("POST", "/tokenize"): Operation(
        handler=tokenization.tokenize,
        forms=(TOKENIZE_TEXT, TOKENIZE_MESSAGES),
        answer=bodies.Tokenized,
        errors=_BODY,
    ),
    ("POST", "/detokenize"): Operation(
        handler=tokenization.detokenize,
        forms=(DETOKENIZE,),
        answer=bodies.Detokenized,
        errors=_BODY,
    ),
    ("GET", "/tokenizer_info"): Operation(
        handler=tokenization.tokenizer_info,
        query_names_model=True,
        answer=bodies.TokenizerInfo,
        errors=(*_MODEL, RequestError),
    ),
    ("GET", "/liveness"): Operation(handler=health.liveness, answer=bodies.Liveness, errors=_ANY_ROUTE),
    ("GET", "/readiness"): Operation(
        handler=health.readiness,
        answer=bodies.Readiness,
        not_ready=bodies.Readiness,
        errors=_ANY_ROUTE,
    ),
    ("GET", "/health"): Operation(
        handler=health.health,
        answer=bodies.Health,
        not_ready=bodies.Health,
        errors=_ANY_ROUTE,
    ),
    ("GET", "/"): Operation(handler=page.welcome, answer=bodies.Welcome, errors=_PLAIN),
    ("GET", "/version"): Operation(handler=health.version, answer=bodies.Version, errors=_PLAIN),
    ("GET", "/openapi.json"): Operation(handler=openapi.openapi, answer=None, errors=_PLAIN),
    ("GET", "/metrics"): Operation(
        handler=health.metrics,
        answer=None,
        media_type="text/plain",
        errors=(*_ANY_ROUTE, AuthenticationError, HostError),
    ),
}
