"""`POST /v1/responses`, stateless: a conversation in, output items out, whole or as events.

Event loop; templates and tokenization go to worker threads. Generates what the same chat completion would.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator, Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.server.answers.response_types import (
    LifecycleEvent,
    LifecycleType,
    Response,
    ResponseEvent,
    ResponseStatus,
    ResponseUsage,
)
from vinfer.server.fields.responses.body import RESPONSES, ResponsesFields
from vinfer.server.fields.responses.input import input_images
from vinfer.server.generate.answer import AnswerShape, answer
from vinfer.server.generate.conversation import Conversation, prepare
from vinfer.server.generate.generation import ChoiceDelta
from vinfer.server.generate.response_items import ResponseItems
from vinfer.server.generate.sse import Framing
from vinfer.server.http.body import read_fields
from vinfer.server.http.context import RequestContext
from vinfer.server.http.errors import error_object
from vinfer.server.services import Services


async def responses(services: Services, request: HttpRequest) -> ASGIApp | JSONResponse:
    """Answer a conversation with items, whole or as events; stateless.

    Raises:
        VinferError: the request is refused or fails.
        ClientLeftError: the client closed the connection.
    """
    fields, conversation = await _conversation(services, request)
    shape = ResponseShape(services, fields, conversation)
    return await answer(services, request, conversation.generation, shape, streams=fields.stream)


async def _conversation(services: Services, request: HttpRequest) -> tuple[ResponsesFields, Conversation]:
    """Read the body and prepare its conversation; a function, so that nothing keeps the body longer."""
    fields, completion = await read_fields(request, services, RESPONSES.parse_as_chat)
    context = RequestContext.of(request.scope)
    with RESPONSES.own_words():
        sources = input_images(fields.input)
        conversation = await prepare(services, context, completion, sources, f"resp_{uuid.uuid4().hex}")
    return fields.model_copy(update={"input": []}), conversation


class ResponseShape(AnswerShape):
    """Writes one response and its events."""

    def __init__(self, services: Services, fields: ResponsesFields, conversation: Conversation) -> None:
        self._services = services
        self._fields = fields
        self._conversation = conversation
        self._reader = conversation.reader()
        self._numbers = itertools.count()
        self._items = ResponseItems(self._numbers)
        self._created = int(time.time())
        self._status: ResponseStatus = "in_progress"
        self.framing = Framing(names_events=True, end=b"", failure=self.failed_event)

    def begin(self) -> Iterator[LifecycleEvent]:
        """Yield the events that say so."""
        yield self._lifecycle("response.created", self._written())
        yield self._lifecycle("response.in_progress", self._written())

    def delta_events(self, delta: ChoiceDelta) -> Iterator[ResponseEvent]:
        """Read what the answer has gained, and yield its events."""
        for piece in self._reader.read(delta):
            yield from self._items.push(piece)
        if delta.finish_reason is not None:
            self._status = "incomplete" if delta.finish_reason == "length" else "completed"
            yield from self._items.finish(self._status)

    async def end(self) -> Sequence[LifecycleEvent]:
        """Return the event with the whole response."""
        is_incomplete = self._status == "incomplete"
        kind: LifecycleType = "response.incomplete" if is_incomplete else "response.completed"
        return [self._lifecycle(kind, {**self._written(), "usage": await self._usage()})]

    async def whole(self, choices: Sequence[ChoiceDelta]) -> Response:
        """Return the whole response."""
        for choice in choices:
            for _ in self.delta_events(choice):
                pass
        return {**self._written(), "usage": await self._usage()}

    def failed_event(self, error: Exception, request_id: str) -> LifecycleEvent:
        """Return the last event of a stream that fails."""
        self._status = "failed"
        message = error_object(error, request_id)["error"]["message"]
        failed: Response = {**self._written(), "error": {"code": "server_error", "message": message}}
        return self._lifecycle("response.failed", failed)

    def _lifecycle(self, kind: LifecycleType, response: Response) -> LifecycleEvent:
        return {"type": kind, "response": response, "sequence_number": next(self._numbers)}

    def _written(self) -> Response:
        fields, params = self._fields, self._conversation.params
        form, choice = fields.text.format, fields.tool_choice
        is_incomplete = self._status == "incomplete"
        return {
            "id": self._conversation.generation.name,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "status": self._status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete else None,
            "instructions": fields.instructions,
            "max_output_tokens": fields.max_output_tokens,
            "metadata": {},
            "model": self._conversation.model.name,
            "output": self._items.written(),
            "parallel_tool_calls": fields.parallel_tool_calls,
            "previous_response_id": None,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "reasoning": {"effort": fields.reasoning.effort, "summary": fields.reasoning.summary},
            "store": False,
            # Accepted without effect, or refused.
            "service_tier": "default",
            "safety_identifier": None,
            "prompt_cache_key": None,
            "max_tool_calls": None,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"} if form is None else form.as_answer()},
            "tool_choice": "auto" if choice is None else choice.as_answer(),
            "tools": [tool.as_answer() for tool in fields.tools],
            "top_logprobs": 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    async def _usage(self) -> ResponseUsage:
        generation = self._conversation.generation
        num_input, num_output = generation.num_prompt_tokens, generation.num_completion_tokens
        return {
            "input_tokens": num_input,
            "input_tokens_details": {"cached_tokens": generation.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": num_output,
            "output_tokens_details": {"reasoning_tokens": await self._num_reasoning_tokens(num_output)},
            "total_tokens": num_input + num_output,
        }

    async def _num_reasoning_tokens(self, num_output: int) -> int:
        """Count the tokens of the reasoning as a text by itself, because its tokens are not kept."""
        thought = self._items.reasoning
        if not thought:
            return 0
        encode = self._conversation.model.tokenizer.encode
        token_ids = await self._services.in_worker(encode, thought, add_special_tokens=False)
        return min(len(token_ids), num_output)
