"""`POST /v1/chat/completions`. Event loop; templates and tokenization go to worker threads."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.server.answers import bodies
from vinfer.server.fields.chat import CHAT
from vinfer.server.generate.answer import AnswerShape, add_usage, answer, usage
from vinfer.server.generate.conversation import Conversation, prepare
from vinfer.server.generate.generation import ChoiceDelta
from vinfer.server.generate.images import image_sources
from vinfer.server.generate.logprobs import chat_logprobs
from vinfer.server.generate.message_reader import MessageReader
from vinfer.server.http.body import read_fields
from vinfer.server.http.context import RequestContext
from vinfer.server.services import Services


async def chat_completions(services: Services, request: HttpRequest) -> ASGIApp | JSONResponse:
    """Answer a conversation, whole or streamed.

    Raises:
        VinferError: the request is refused or fails.
        ClientLeftError: the client closed the connection.
    """
    conversation = await _conversation(services, request)
    generation, streams = conversation.generation, conversation.fields.stream
    return await answer(services, request, generation, ChatShape(conversation), streams=streams)


async def _conversation(services: Services, request: HttpRequest) -> Conversation:
    """Read the body and prepare its conversation; a function, so that nothing keeps the body longer."""
    fields = await read_fields(request, services, CHAT.parse)
    sources = image_sources(fields.messages, "messages")
    context = RequestContext.of(request.scope)
    return await prepare(services, context, fields, sources, f"chatcmpl-{uuid.uuid4().hex}")


class ChatShape(AnswerShape):
    """Writes chat completions and their chunks."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._generation = conversation.generation
        self._fields = conversation.fields
        self._model = conversation.model
        self._id = conversation.generation.name
        self._created = int(time.time())
        self._readers: dict[int, MessageReader] = {}

    def delta_events(self, delta: ChoiceDelta) -> Iterator[bodies.ChatChunk]:
        """Yield the role with a choice's first token, a chunk for each new piece, and one for its end."""
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = self._conversation.reader()
            begun = self._chunk(delta.index, {"role": "assistant", "content": "", "refusal": None})
            if self._fields.return_token_ids:
                begun["prompt_token_ids"] = self._generation.prompt_ids(delta.index)
            yield begun
        logprobs, token_ids = self._logprobs(delta), self._token_ids(delta)
        pieces = reader.read(delta)
        if not pieces and (logprobs or token_ids.get("token_ids")):
            # Tokens whose text cannot be shown yet.
            pieces.append({"content": ""})
        for piece in pieces:
            yield self._chunk(delta.index, piece, logprobs, token_ids)
            logprobs, token_ids = None, {}
        if delta.finish_reason is not None:
            yield self._chunk(delta.index, {}, finish_reason=_finish_reason(delta, reader))

    async def end(self) -> Sequence[bodies.ChatChunk]:
        """Return a chunk without choices, if the usage is asked for."""
        return (
            [{**self._chunk_of([]), "usage": usage(self._generation)}] if self._fields.includes_usage else []
        )

    async def whole(self, choices: Sequence[ChoiceDelta]) -> bodies.ChatCompletion:
        """Return the whole completion."""
        whole: bodies.ChatCompletion = {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.manifest.key,
            "choices": [self._whole_choice(choice) for choice in choices],
            "usage": usage(self._generation),
        }
        if self._fields.return_token_ids:
            whole["prompt_token_ids"] = self._generation.prompt_ids(0)
        return whole

    def _whole_choice(self, choice: ChoiceDelta) -> bodies.ChatChoice:
        reader = self._conversation.reader()
        reader.read(choice)
        message: bodies.AnswerMessage = {
            "role": "assistant",
            "content": reader.whole_content,
            "refusal": None,
            "annotations": [],
        }
        if reader.reasoning:
            message["reasoning_content"] = reader.reasoning
        if reader.calls:
            message["tool_calls"] = [call.as_answer() for call in reader.calls]
        finish_reason = _finish_reason(choice, reader)
        assert finish_reason is not None
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice),
            "finish_reason": finish_reason,
            **self._token_ids(choice),
        }

    def _logprobs(self, delta: ChoiceDelta) -> bodies.ChatLogprobs | None:
        if not self._fields.logprobs or (self._fields.stream and not delta.tokens):
            return None
        return chat_logprobs(delta.tokens, self._model.tokenizer, self._fields.top_logprobs or 0)

    def _token_ids(self, delta: ChoiceDelta) -> bodies.WithTokenIds:
        return {"token_ids": delta.token_ids} if self._fields.return_token_ids else {}

    def _chunk(
        self,
        index: int,
        delta: bodies.MessageDelta,
        logprobs: bodies.ChatLogprobs | None = None,
        token_ids: bodies.WithTokenIds | None = None,
        finish_reason: bodies.ChatFinishReason | None = None,
    ) -> bodies.ChatChunk:
        choice: bodies.ChatChunkChoice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
            **(token_ids or {}),
        }
        return self._chunk_of([choice])

    def _chunk_of(self, choices: list[bodies.ChatChunkChoice]) -> bodies.ChatChunk:
        chunk: bodies.ChatChunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.manifest.key,
            "choices": choices,
        }
        add_usage(chunk, self._fields, self._generation)
        return chunk


def _finish_reason(choice: ChoiceDelta, reader: MessageReader) -> bodies.ChatFinishReason | None:
    return "tool_calls" if choice.finish_reason == "stop" and reader.calls else choice.finish_reason
