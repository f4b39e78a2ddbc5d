"""`POST /v1/embeddings`: texts or token ids to L2-normalized vectors.

Event loop; tokenization and work that grows with the answer go to worker threads. Each input is a separate
engine request that ends with its prompt. It shares the queue, slots and dispatches with all other requests.
"""

from __future__ import annotations

import base64
import uuid
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from vinfer.bundle.manifest import Embeddings
from vinfer.engine.request import Request, SamplingParams, TokenEvent
from vinfer.errors import EngineError, QueueFullError, RequestError
from vinfer.server.answers.bodies import EmbeddingList
from vinfer.server.fields.embeddings import EMBEDDING, EmbeddingFields
from vinfer.server.generate.prompts import PromptIds, embedding_prompt_ids
from vinfer.server.http.body import read_fields
from vinfer.server.http.context import RequestContext
from vinfer.server.http.disconnect import unless_client_leaves
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_NOTHING_TO_SAMPLE = SamplingParams(max_tokens=0, temperature=0.0)


async def embeddings(services: Services, request: HttpRequest) -> JSONResponse:
    """Turn one or more texts into vectors.

    Raises:
        VinferError: the request is refused or fails.
        ClientLeftError: the client closed the connection.
    """
    context = RequestContext.of(request.scope)
    fields = await read_fields(request, services, EMBEDDING.parse)
    model = services.models.serving(fields.model)
    context.model_name = model.name
    facts = _embeddings_of(model)
    size = _num_dimensions(fields, model, facts)
    model.engine.check_room(context.tenant)
    prompts = await services.in_worker(embedding_prompt_ids, fields, model)
    name = f"embd-{uuid.uuid4().hex}"
    requests = [
        Request(
            id=f"{name}-{i}",
            prompt_ids=prompt_ids,
            params=_NOTHING_TO_SAMPLE,
            arrival_seconds=context.arrival_seconds,
            pooling=facts.pooling,
            tenant=context.tenant,
        )
        for i, prompt_ids in enumerate(prompts)
    ]
    async with services.deadlines.limit(context.elapsed_seconds(), context.own_seconds):
        pooled = await unless_client_leaves(request.receive, _pooled(services, model, requests))
    context.usage.num_prompt_tokens = sum(map(len, prompts))
    return await services.in_worker(_answer, fields, model, prompts, pooled, size)


def _embeddings_of(model: ServedModel) -> Embeddings:
    if model.manifest.embeddings is None:
        raise RequestError(
            f"model {model.name} was built without embeddings: set models[{model.position}].embeddings: mean "
            "(or last) and serve again",
            param="model",
        )
    return model.manifest.embeddings


def _num_dimensions(fields: EmbeddingFields, model: ServedModel, facts: Embeddings) -> int:
    if fields.dimensions is None:
        return facts.size
    if fields.dimensions > facts.size:
        raise RequestError(
            f"dimensions is {fields.dimensions}; the embeddings of model {model.name} have {facts.size}: "
            "lower it or leave it out",
            param="dimensions",
        )
    return fields.dimensions


async def _pooled(
    services: Services, model: ServedModel, requests: Sequence[Request]
) -> list[tuple[bytes, ...]]:
    """Submit requests to the engine, and return the parts of each one's pooled hidden states.

    At most as many requests are submitted at once as there are slots. There may be more inputs than the queue
    has room for, and other clients need room in it too.

    Raises:
        QueueFullError: the queue has no room for the first request.
    """
    num_slots = model.manifest.num_slots
    waiting = deque(requests)
    submitted: deque[tuple[Request, AsyncIterator[TokenEvent]]] = deque()
    pooled = []
    try:
        while waiting or submitted:
            while waiting and len(submitted) < num_slots:
                try:
                    submitted.append((waiting[0], model.engine.submit(waiting[0])))
                except QueueFullError:
                    if not submitted:
                        raise
                    break
                waiting.popleft()
            pooled.append(await _parts(services, model, submitted[0][1]))
            submitted.popleft()
    finally:
        for request, _ in submitted:
            model.engine.cancel(request.id)
    return pooled


async def _parts(
    services: Services, model: ServedModel, stream: AsyncIterator[TokenEvent]
) -> tuple[bytes, ...]:
    parts: tuple[bytes, ...] = ()
    async for event in stream:
        if event.error is not None:
            raise event.error
        if event.queue_seconds is not None:
            services.metrics.observe_queue(model.name, event.queue_seconds)
        parts += event.pooled
        if event.is_last:
            return parts
    raise EngineError("the engine ended a request without a result")


def _answer(
    fields: EmbeddingFields,
    model: ServedModel,
    prompts: Sequence[PromptIds],
    pooled: Sequence[tuple[bytes, ...]],
    size: int,
) -> JSONResponse:
    num_tokens = sum(map(len, prompts))
    body: EmbeddingList = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _written(_vector(parts, size), fields)}
            for i, parts in enumerate(pooled)
        ],
        "model": model.name,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
    }
    return JSONResponse(body)


def _vector(parts: Sequence[bytes], size: int) -> npt.NDArray[np.float32]:
    """Return float32 [size], L2-normalized, which removes the factor between sum and mean.

    A zero vector stays a zero vector.

    Args:
        parts: see `TokenEvent.pooled`.
        size: how many leading numbers to keep.
    """
    # Imported here so that a text-only server does not load it; the engine loaded it long before.
    import numpy as np

    chunks = np.stack([np.frombuffer(part, np.float32) for part in parts])
    kept = chunks.sum(axis=0, dtype=np.float64)[:size]
    norm = np.linalg.norm(kept)
    if not np.isfinite(norm):
        raise EngineError("the model's hidden states are not finite: try a dtype with a wider range")
    if norm:
        kept = kept / norm
    return np.asarray(kept, np.float32)


def _written(vector: npt.NDArray[np.float32], fields: EmbeddingFields) -> list[float] | str:
    if fields.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
