"""`POST /v1/chat/completions`. Event loop; templates and tokenization go to worker threads."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.server.fields.chat import CHAT
from vinfer.server.generate.answer import answer
from vinfer.server.generate.conversation import Conversation, prepare
from vinfer.server.generate.generation import ChoiceDelta
from vinfer.server.generate.images import image_sources
from vinfer.server.generate.logprobs import chat_logprobs
from vinfer.server.generate.message_reader import MessageReader
from vinfer.server.http.body import read_fields
from vinfer.server.http.context import RequestContext
from vinfer.server.services import Services


async def chat_completions(services: Services, request: HttpRequest) -> ASGIApp | JSONResponse:
    """Answer a conversation.

    Raises:
        VinferError: the request is refused or fails.
        ClientLeftError: the client closed the connection.
    """
    conversation = await _conversation(services, request)
    shape = ChatShape(conversation)
    return await answer(services, request, conversation.fields, conversation.generation, shape)


async def _conversation(services: Services, request: HttpRequest) -> Conversation:
    """Read the body and prepare its conversation; a function, so that nothing keeps the body longer."""
    fields = await read_fields(request, services, CHAT.parse)
    sources = image_sources(fields.messages, "messages")
    context = RequestContext.of(request.scope)
    return await prepare(services, context, fields, sources, f"chatcmpl-{uuid.uuid4().hex}")


class ChatShape:
    """Writes chat completions and their chunks."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._fields = conversation.fields
        self._model = conversation.model
        self._created = int(time.time())
        self._readers: dict[int, MessageReader] = {}

    def delta_chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        """Yield the role with a choice's first token, a chunk for each new piece, and one for its end."""
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = self._conversation.reader()
            yield {
                **self._chunk(delta.index, {"role": "assistant", "content": "", "refusal": None}),
                **self._prompt_ids(delta.index),
            }
        of_tokens = self._of_tokens(delta)
        for piece in reader.read(delta):
            yield self._chunk(delta.index, piece, **of_tokens)
            of_tokens = {}
        if any(of_tokens.values()):
            # Tokens whose text cannot be shown yet.
            yield self._chunk(delta.index, {"content": ""}, **of_tokens)
        if delta.finish_reason is not None:
            yield self._chunk(delta.index, {}, finish_reason=_finish_reason(delta, reader))

    def usage_chunk(self) -> dict[str, Any]:
        """Return a chunk without choices."""
        return {**self._head("chat.completion.chunk"), "choices": []}

    def body(self, choices: Sequence[ChoiceDelta]) -> dict[str, Any]:
        """Return the whole completion."""
        return {
            **self._head("chat.completion"),
            **self._prompt_ids(0),
            "choices": [self._whole_choice(choice) for choice in choices],
        }

    def _whole_choice(self, choice: ChoiceDelta) -> dict[str, Any]:
        reader = self._conversation.reader()
        reader.read(choice)
        message: dict[str, Any] = {"role": "assistant", "content": reader.whole_content}
        if reader.reasoning:
            message["reasoning_content"] = reader.reasoning
        if reader.calls:
            message["tool_calls"] = [call.as_answer() for call in reader.calls]
        return {
            "index": choice.index,
            "message": {**message, "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": _finish_reason(choice, reader),
            **self._of_tokens(choice),
        }

    def _of_tokens(self, delta: ChoiceDelta) -> dict[str, Any]:
        """Return what a request may ask about tokens, if there are any."""
        written: dict[str, Any] = {}
        if self._fields.logprobs and (delta.tokens or not self._fields.stream):
            num_top = self._fields.top_logprobs or 0
            written["logprobs"] = chat_logprobs(delta.tokens, self._model.tokenizer, num_top)
        if self._fields.return_token_ids:
            written["token_ids"] = delta.token_ids
        return written

    def _prompt_ids(self, choice: int) -> dict[str, Any]:
        if not self._fields.return_token_ids:
            return {}
        return {"prompt_token_ids": self._conversation.generation.prompt_ids(choice)}

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        finish_reason: str | None = None,
        **of_tokens: Any,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
            **of_tokens,
        }
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._conversation.generation.name,
            "object": kind,
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.manifest.key,
        }


def _finish_reason(choice: ChoiceDelta, reader: MessageReader) -> str | None:
    return "tool_calls" if choice.finish_reason == "stop" and reader.calls else choice.finish_reason
