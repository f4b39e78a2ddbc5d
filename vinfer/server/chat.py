"""`POST /v1/chat/completions`. Event loop; templates and tokenization go to worker threads."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.server.answer import answer
from vinfer.server.chat_images import prepare_images, request_images
from vinfer.server.generation import ChoiceDelta, GeneratedToken, Generation, PromptJob, TextRules
from vinfer.server.grammars import compile_grammar
from vinfer.server.logprobs import chat_logprobs
from vinfer.server.model_table import ServedModel
from vinfer.server.prompts import chat_prompt_ids
from vinfer.server.protocol import ChatFields, parse_chat
from vinfer.server.request_body import read_json_object
from vinfer.server.request_context import RequestContext
from vinfer.server.sampling import num_choices, resolve_sampling
from vinfer.server.services import Services


async def chat_completions(services: Services, request: HttpRequest) -> ASGIApp | JSONResponse:
    """Answer a conversation.

    Raises:
        VinferError: the request is refused or fails.
        ClientLeftError: the client closed the connection.
    """
    context = RequestContext.of(request.scope)
    body = await read_json_object(request, services)
    fields = parse_chat(body, services.config.unknown_fields)
    model = services.models.serving(fields.model)
    context.model_name = model.name
    n = num_choices(fields, model, services.config.max_n)
    images = await prepare_images(services, fields.messages, "messages", model)
    prompt_ids = await services.in_worker(chat_prompt_ids, fields, model, images)
    grammar = await compile_grammar(services, fields, model)
    shape = ChatShape(fields, model)
    generation = Generation(
        name=shape.id,
        model=model,
        jobs=[
            PromptJob(
                prompt_ids=prompt_ids,
                params=resolve_sampling(fields, model, len(prompt_ids)),
                grammar=grammar,
                images=request_images(prompt_ids, images, model),
            ),
        ],
        n=n,
        rules=TextRules(
            stop=tuple(fields.stop),
            skip_special_tokens=fields.skip_special_tokens,
            continues_prompt=fields.continue_final_message,
        ),
        arrival_seconds=context.arrival_seconds,
        metrics=services.metrics,
    )
    return await answer(services, request, fields, generation, shape)


class ChatShape:
    """Writes chat completions and their chunks."""

    def __init__(self, fields: ChatFields, model: ServedModel) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._fields = fields
        self._model = model
        self._created = int(time.time())

    def opening_chunks(self, num_choices: int) -> Iterator[dict[str, Any]]:
        """Write each choice's role."""
        for index in range(num_choices):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def delta_chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        """Write new text, then the end, as two chunks."""
        if delta.text or delta.tokens:
            yield self._chunk(delta.index, {"content": delta.text}, logprobs=self._logprobs(delta.tokens))
        if delta.finish_reason is not None:
            yield self._chunk(delta.index, {}, finish_reason=delta.finish_reason)

    def usage_chunk(self) -> dict[str, Any]:
        """Write a chunk without choices."""
        return {**self._head("chat.completion.chunk"), "choices": []}

    def body(self, choices: Sequence[ChoiceDelta]) -> dict[str, Any]:
        """Write the whole completion."""
        return {
            **self._head("chat.completion"),
            "choices": [
                {
                    "index": choice.index,
                    "message": {
                        "role": "assistant",
                        "content": choice.text,
                        "refusal": None,
                        "annotations": [],
                    },
                    "logprobs": self._logprobs(choice.tokens),
                    "finish_reason": choice.finish_reason,
                }
                for choice in choices
            ],
        }

    def _logprobs(self, tokens: Sequence[GeneratedToken]) -> dict[str, Any] | None:
        if not self._fields.logprobs:
            return None
        return chat_logprobs(tokens, self._model.tokenizer, self._fields.top_logprobs or 0)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.fingerprint,
        }
