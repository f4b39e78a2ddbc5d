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
from vinfer.server.generation import ChoiceDelta, GeneratedToken, Generation, PromptJob, TextRules
from vinfer.server.grammars import compile_grammar
from vinfer.server.logprobs import chat_logprobs
from vinfer.server.message_reader import MessageReader
from vinfer.server.model_table import ServedModel
from vinfer.server.prompts import chat_prompt_ids
from vinfer.server.protocol import ChatFields, parse_chat
from vinfer.server.request_body import read_json_object
from vinfer.server.request_context import RequestContext
from vinfer.server.sampling import num_choices, resolve_sampling
from vinfer.server.services import Services
from vinfer.server.tool_grammar import compile_tool_grammar
from vinfer.text.reasoning import OPENING, ReasoningParser


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
    prompt_ids = await services.in_worker(chat_prompt_ids, fields, model)
    grammar = await compile_grammar(services, fields, model)
    if grammar is None:
        grammar = await compile_tool_grammar(services, fields, model)
    # An answer that is bound to a form has no room for thoughts.
    has_reasoning = model.answer_form.has_reasoning and grammar is None
    shape = ChatShape(fields, model, prompt_ids if has_reasoning else None)
    generation = Generation(
        name=shape.id,
        model=model,
        jobs=[
            PromptJob(
                prompt_ids=prompt_ids,
                params=resolve_sampling(fields, model, len(prompt_ids)),
                grammar=grammar,
                priority=fields.priority,
                cache_salt=fields.cache_salt,
            ),
        ],
        n=n,
        rules=TextRules(
            stop=tuple(fields.stop),
            skip_special_tokens=fields.skip_special_tokens,
            shown_special_ids=model.answer_form.marker_ids(
                model.tokenizer, reads_calls=bool(fields.callable_tools)
            ),
            continues_prompt=fields.continue_final_message,
        ),
        arrival_seconds=context.arrival_seconds,
        metrics=services.metrics,
    )
    return await answer(services, request, fields, generation, shape)


class ChatShape:
    """Writes chat completions and their chunks.

    Args:
        reasons_after: the prompt, where the model may think before it answers; None where it may not.
    """

    def __init__(
        self, fields: ChatFields, model: ServedModel, reasons_after: tuple[int, ...] | None = None
    ) -> None:
        self._has_reasoning = reasons_after is not None
        self._is_reasoning_open = reasons_after is not None and _ends_with_opening(model, reasons_after)
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._fields = fields
        self._model = model
        self._created = int(time.time())
        self._readers: dict[int, MessageReader] = {}

    def opening_chunks(self, num_choices: int) -> Iterator[dict[str, Any]]:
        """Write each choice's role."""
        for index in range(num_choices):
            yield self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def delta_chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        """Write each piece of the message that new text makes, then the end, as chunks."""
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = self._reader()
        logprobs = self._logprobs(delta.tokens)
        for piece in reader.push(delta.text, is_last=delta.finish_reason is not None):
            yield self._chunk(delta.index, piece, logprobs=logprobs)
            logprobs = None
        if logprobs is not None and delta.tokens:
            # Tokens of which nothing can be shown yet.
            yield self._chunk(delta.index, {"content": ""}, logprobs=logprobs)
        if delta.finish_reason is not None:
            yield self._chunk(delta.index, {}, finish_reason=_finish_reason(delta, reader))

    def usage_chunk(self) -> dict[str, Any]:
        """Write a chunk without choices."""
        return {**self._head("chat.completion.chunk"), "choices": []}

    def body(self, choices: Sequence[ChoiceDelta]) -> dict[str, Any]:
        """Write the whole completion."""
        return {
            **self._head("chat.completion"),
            "choices": [self._whole_choice(choice) for choice in choices],
        }

    def _whole_choice(self, choice: ChoiceDelta) -> dict[str, Any]:
        reader = self._reader()
        reader.push(choice.text, is_last=True)
        message: dict[str, Any] = {"role": "assistant", "content": reader.content}
        if reader.reasoning:
            message["reasoning_content"] = reader.reasoning
        if reader.calls:
            message["content"] = reader.content or None
            message["tool_calls"] = [call.as_answer() for call in reader.calls]
        return {
            "index": choice.index,
            "message": {**message, "refusal": None, "annotations": []},
            "logprobs": self._logprobs(choice.tokens),
            "finish_reason": _finish_reason(choice, reader),
        }

    def _reader(self) -> MessageReader:
        return MessageReader(
            self._model.answer_form,
            self._fields.callable_tools,
            is_parallel=self._fields.parallel_tool_calls,
            reasoning=ReasoningParser(is_open=self._is_reasoning_open) if self._has_reasoning else None,
        )

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


def _finish_reason(choice: ChoiceDelta, reader: MessageReader) -> str | None:
    return "tool_calls" if choice.finish_reason == "stop" and reader.calls else choice.finish_reason


def _ends_with_opening(model: ServedModel, prompt_ids: tuple[int, ...]) -> bool:
    """Say whether the prompt has opened the model's reasoning; white space may follow."""
    tail = model.tokenizer.decode(prompt_ids[-2 * len(OPENING) :], skip_special_tokens=False)
    return tail.rstrip().endswith(OPENING)
