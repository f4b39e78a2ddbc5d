"""Turns a generation into an HTTP response, streamed or whole, in the form that the route writes.

Runs on the event loop. Streamed and whole answers are folded from the same deltas, so they cannot disagree.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.server.answers.bodies import ChatChunk, ChatCompletion, Completion, CompletionChunk, Usage
from vinfer.server.fields.sampling import SamplingFields
from vinfer.server.generate.generation import ChoiceDelta, Generation
from vinfer.server.generate.sse import Chunks, EventStream
from vinfer.server.http.context import RequestContext
from vinfer.server.http.disconnect import unless_client_leaves
from vinfer.server.services import Services


class AnswerShape(Protocol):
    """How a route writes its answer."""

    def delta_chunks(self, delta: ChoiceDelta) -> Iterator[ChatChunk] | Iterator[CompletionChunk]:
        """Yield the chunks of what a choice has gained."""
        ...

    def usage_chunk(self) -> ChatChunk | CompletionChunk:
        """Return the chunk without choices that a stream may end with."""
        ...

    def body(self, choices: Sequence[ChoiceDelta], used: Usage) -> ChatCompletion | Completion:
        """Return the whole answer."""
        ...


def usage(generation: Generation) -> Usage:
    """Return what a generation has used so far; the last two fields are vInference's."""
    num_prompt_tokens = generation.num_prompt_tokens
    num_completion_tokens = generation.num_completion_tokens
    seconds = time.monotonic() - generation.arrival_seconds
    used: Usage = {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
        "tokens_per_second": num_completion_tokens / seconds if seconds > 0 else 0.0,
        "processing_time": seconds,
    }
    if generation.model.speculates:
        num_accepted = generation.num_accepted_tokens
        used["completion_tokens_details"] = {
            "accepted_prediction_tokens": num_accepted,
            "rejected_prediction_tokens": generation.num_draft_tokens - num_accepted,
        }
    return used


async def answer(
    services: Services,
    request: HttpRequest,
    fields: SamplingFields,
    generation: Generation,
    shape: AnswerShape,
) -> ASGIApp | JSONResponse:
    """Start a generation and answer with it.

    Raises:
        VinferError: the engine does not accept or does not finish it.
        ClientLeftError: the client closed the connection.
    """
    generation.start()
    services.intake.release(RequestContext.of(request.scope))
    if fields.stream:
        chunks = _chunks(fields, generation, shape, services.config.ping_seconds)
        return EventStream(services, generation, chunks)
    choices = await whole_choices(services, request, generation)
    return JSONResponse(shape.body(choices, usage(generation)))


async def whole_choices(
    services: Services, request: HttpRequest, generation: Generation
) -> list[ChoiceDelta]:
    """Return the choices of a started generation once it has ended, and close it.

    Raises:
        VinferError: the engine does not finish it.
        ClientLeftError: the client closed the connection.
    """
    try:
        return await unless_client_leaves(request.receive, _run_to_end(services, request, generation))
    finally:
        await generation.close()


async def deltas_or_pings(
    generation: Generation, ping_seconds: float = 0.0
) -> AsyncGenerator[ChoiceDelta | None, None]:
    """Yield the deltas of a started generation as they come; None when a stream must send a ping.

    Args:
        ping_seconds: the length of a silence that a ping ends; 0 for no pings.
    """
    while not generation.is_done:
        deltas = await generation.next_deltas(ping_seconds or None)
        if not deltas:
            yield None
        for delta in deltas:
            yield delta


async def _run_to_end(services: Services, request: HttpRequest, generation: Generation) -> list[ChoiceDelta]:
    choices = [ChoiceDelta(index) for index in range(generation.num_choices)]
    context = RequestContext.of(request.scope)
    async with services.deadlines.limit(context.elapsed_seconds(), context.own_seconds):
        async for delta in deltas_or_pings(generation):
            if delta is not None:
                choices[delta.index].extend(delta)
    return choices


async def _chunks(
    fields: SamplingFields, generation: Generation, shape: AnswerShape, ping_seconds: float
) -> Chunks:
    async for delta in deltas_or_pings(generation, ping_seconds):
        if delta is None:
            yield None
            continue
        for chunk in shape.delta_chunks(delta):
            if fields.includes_continuous_usage:
                chunk["usage"] = usage(generation)
            elif fields.includes_usage:
                # OpenAI's chunks have a null usage before the one that has it.
                chunk["usage"] = None
            yield chunk
    if fields.includes_usage:
        last = shape.usage_chunk()
        last["usage"] = usage(generation)
        yield last
