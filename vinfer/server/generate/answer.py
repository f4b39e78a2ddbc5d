"""Turns a generation into an HTTP response, streamed or whole, in the form that the route writes.

Runs on the event loop. Streamed and whole answers are folded from the same deltas, so they cannot disagree.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterable, Iterator, Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.server.answers.bodies import ChatChunk, CompletionChunk, Usage
from vinfer.server.fields.sampling import SamplingFields
from vinfer.server.generate.generation import ChoiceDelta, Generation
from vinfer.server.generate.sse import UNNAMED, Chunk, Chunks, EventStream
from vinfer.server.http.context import RequestContext
from vinfer.server.http.disconnect import unless_client_leaves
from vinfer.server.services import Services


class AnswerShape(abc.ABC):
    """How a route writes its answer. Whole and streamed ones are made of the same deltas."""

    framing = UNNAMED

    def begin(self) -> Iterable[Chunk]:
        """Return the events before the first token."""
        return ()

    @abc.abstractmethod
    def delta_events(self, delta: ChoiceDelta) -> Iterator[Chunk]:
        """Yield the events of what a choice has gained."""

    @abc.abstractmethod
    async def end(self) -> Iterable[Chunk]:
        """Return the events after the last token."""

    @abc.abstractmethod
    async def whole(self, choices: Sequence[ChoiceDelta]) -> Chunk:
        """Return the whole answer."""


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


def add_usage(chunk: ChatChunk | CompletionChunk, fields: SamplingFields, generation: Generation) -> None:
    """Write into a chunk what `stream_options` asks for."""
    if fields.includes_continuous_usage:
        chunk["usage"] = usage(generation)
    elif fields.includes_usage:
        # OpenAI's chunks have a null usage before the one that has it.
        chunk["usage"] = None


async def answer(
    services: Services, request: HttpRequest, generation: Generation, shape: AnswerShape, *, streams: bool
) -> ASGIApp | JSONResponse:
    """Start a generation and answer with it.

    Raises:
        VinferError: the engine does not accept or does not finish it.
        ClientLeftError: the client closed the connection.
    """
    generation.start()
    context = RequestContext.of(request.scope)
    services.intake.release(context)
    if streams:
        events = _events(generation, shape, services.config.ping_seconds or None)
        return EventStream(services, generation, events, shape.framing)
    try:
        running = _choices(services, context, generation)
        choices = await unless_client_leaves(request.receive, running)
    finally:
        await generation.close()
    return JSONResponse(await shape.whole(choices))


async def _choices(services: Services, context: RequestContext, generation: Generation) -> list[ChoiceDelta]:
    choices = [ChoiceDelta(index) for index in range(generation.num_choices)]
    async with services.deadlines.limit(context.elapsed_seconds(), context.own_seconds):
        while not generation.is_done:
            for delta in await generation.next_deltas(None):
                choices[delta.index].extend(delta)
    return choices


async def _events(generation: Generation, shape: AnswerShape, ping_seconds: float | None) -> Chunks:
    """Yield every event as it comes, and None after each silence of this length."""
    for event in shape.begin():
        yield event
    while not generation.is_done:
        deltas = await generation.next_deltas(ping_seconds)
        if not deltas:
            yield None
        for delta in deltas:
            for event in shape.delta_events(delta):
                yield event
    for event in await shape.end():
        yield event
