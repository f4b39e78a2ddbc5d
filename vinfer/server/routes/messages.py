"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's Messages API, stateless.

Event loop; templates and tokenization go to worker threads. Generates what the same chat completion would.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.server.answers.message_types import (
    InputTokens,
    Message,
    MessageEnd,
    MessageEvent,
    MessageUsage,
    StopReason,
)
from vinfer.server.fields.anthropic.messages import MESSAGES, MESSAGES_COUNT, MessagesFields, for_model
from vinfer.server.fields.anthropic.turns import images_of
from vinfer.server.generate.answer import AnswerShape, answer
from vinfer.server.generate.conversation import Conversation, prepare
from vinfer.server.generate.generation import ChoiceDelta
from vinfer.server.generate.images import prepare_images
from vinfer.server.generate.message_blocks import MessageBlocks
from vinfer.server.generate.prompts import chat_prompt_ids
from vinfer.server.generate.sse import Framing
from vinfer.server.http.body import read_fields
from vinfer.server.http.context import RequestContext
from vinfer.server.http.errors import anthropic_error_object
from vinfer.server.services import Services


async def messages(services: Services, request: HttpRequest) -> ASGIApp | JSONResponse:
    """Answer a conversation in Anthropic's form, whole or as events; stateless.

    Raises:
        VinferError: the request is refused or fails.
        ClientLeftError: the client closed the connection.
    """
    fields, conversation = await _conversation(services, request)
    shape = MessageShape(fields, conversation)
    return await answer(services, request, conversation.generation, shape, streams=fields.stream)


async def count_tokens(services: Services, request: HttpRequest) -> JSONResponse:
    """Count the tokens of a conversation in Anthropic's form.

    Raises:
        RequestError: the request is refused.
    """
    context = RequestContext.of(request.scope)
    fields, completion = await read_fields(request, services, MESSAGES_COUNT.parse_as_chat)
    model = services.models.serving(fields.model)
    context.model_name = model.name
    with MESSAGES_COUNT.own_words():
        completion = for_model(completion, fields.thinking, model)
        images = await prepare_images(services, images_of(fields.messages), model)
        prompt_ids = await services.in_worker(chat_prompt_ids, completion, model, images)
    counted: InputTokens = {"input_tokens": len(prompt_ids)}
    return JSONResponse(counted)


async def _conversation(services: Services, request: HttpRequest) -> tuple[MessagesFields, Conversation]:
    """Read the body and prepare its conversation; a function, so that nothing keeps the body longer."""
    fields, completion = await read_fields(request, services, MESSAGES.parse_as_chat)
    context = RequestContext.of(request.scope)
    model = services.models.serving(fields.model)
    with MESSAGES.own_words():
        completion = for_model(completion, fields.thinking, model)
        sources = images_of(fields.messages)
        conversation = await prepare(services, context, completion, sources, f"msg_{uuid.uuid4().hex}")
    return fields.model_copy(update={"messages": []}), conversation


class MessageShape(AnswerShape):
    """Writes one message and its events; it begins with its first token."""

    framing = Framing(
        names_events=True,
        end=b"",
        failure=anthropic_error_object,
        ping=b'event: ping\ndata: {"type":"ping"}\n\n',
    )

    def __init__(self, fields: MessagesFields, conversation: Conversation) -> None:
        self._conversation = conversation
        self._reader = conversation.reader()
        is_omitted = fields.thinking is not None and fields.thinking.display == "omitted"
        self._blocks = MessageBlocks(shows_thinking=not is_omitted)
        self._stop_reason: StopReason | None = None
        self._stop_sequence: str | None = None
        self._has_begun = False

    def delta_events(self, delta: ChoiceDelta) -> Iterator[MessageEvent]:
        """Read what the answer has gained, and yield its events."""
        if not self._has_begun:
            self._has_begun = True
            yield {"type": "message_start", "message": self._written()}
        for piece in self._reader.read(delta):
            yield from self._blocks.push(piece)
        if delta.finish_reason is not None:
            yield from self._blocks.finish()
            self._stop_reason = self._reason(delta)
            self._stop_sequence = delta.stop

    async def end(self) -> Sequence[MessageEvent]:
        """Return why the message ended, and its tokens."""
        assert self._stop_reason is not None
        end: MessageEnd = {"stop_reason": self._stop_reason, "stop_sequence": self._stop_sequence}
        return [
            {"type": "message_delta", "delta": end, "usage": self._usage()},
            {"type": "message_stop"},
        ]

    async def whole(self, choices: Sequence[ChoiceDelta]) -> Message:
        """Return the whole message."""
        for choice in choices:
            for _ in self.delta_events(choice):
                pass
        return self._written()

    def _written(self) -> Message:
        return {
            "id": self._conversation.generation.name,
            "type": "message",
            "role": "assistant",
            "model": self._conversation.model.name,
            "content": self._blocks.written(),
            "stop_reason": self._stop_reason,
            "stop_sequence": self._stop_sequence,
            # What Anthropic's own server has beyond this; typed clients want the keys.
            "stop_details": None,
            "container": None,
            "usage": self._usage(),
        }

    def _reason(self, delta: ChoiceDelta) -> StopReason:
        if delta.finish_reason == "length":
            return "max_tokens"
        if delta.stop is not None:
            return "stop_sequence"
        return "tool_use" if self._reader.calls else "end_turn"

    def _usage(self) -> MessageUsage:
        """Return the tokens so far; Anthropic counts those that were reused by themselves."""
        generation = self._conversation.generation
        num_reused = generation.num_cached_tokens
        return {
            "input_tokens": generation.num_prompt_tokens - num_reused,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": num_reused,
            "output_tokens": generation.num_completion_tokens,
            "cache_creation": None,
            "output_tokens_details": None,
            "server_tool_use": None,
            "inference_geo": None,
            "service_tier": "standard",
        }
