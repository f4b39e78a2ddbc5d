"""`POST /v1/completions`. Event loop; tokenization goes to worker threads."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.engine.grammar import Grammar
from vinfer.server.answer import answer
from vinfer.server.generation import ChoiceDelta, Generation, PromptJob, TextRules
from vinfer.server.grammars import compile_grammar
from vinfer.server.logprobs import CompletionLogprobs
from vinfer.server.model_table import ServedModel
from vinfer.server.prompts import PromptIds, completion_prompt_ids
from vinfer.server.protocol import CompletionFields, parse_completion
from vinfer.server.request_body import read_json_object
from vinfer.server.request_context import RequestContext
from vinfer.server.sampling import num_choices, resolve_sampling
from vinfer.server.services import Services


async def completions(services: Services, request: HttpRequest) -> ASGIApp | JSONResponse:
    """Complete one or more prompts.

    Raises:
        VinferError: the request is refused or fails.
        ClientLeftError: the client closed the connection.
    """
    context = RequestContext.of(request.scope)
    body = await read_json_object(request, services)
    fields = parse_completion(body, services.config.unknown_fields)
    model = services.models.serving(fields.model)
    context.model_name = model.name
    n = num_choices(fields, model, services.config.max_n)
    prompts = await services.in_worker(completion_prompt_ids, fields, model)
    grammar = await compile_grammar(services, fields, model)
    shape = CompletionShape(fields, model)
    generation = Generation(
        name=shape.id,
        model=model,
        jobs=_jobs(fields, model, prompts, grammar),
        n=n,
        rules=TextRules(
            stop=tuple(fields.stop), skip_special_tokens=fields.skip_special_tokens, continues_prompt=True
        ),
        arrival_seconds=context.arrival_seconds,
        metrics=services.metrics,
    )
    return await answer(services, request, fields, generation, shape)


def _jobs(
    fields: CompletionFields, model: ServedModel, prompts: Sequence[PromptIds], grammar: Grammar | None
) -> list[PromptJob]:
    jobs = []
    for prompt_ids in prompts:
        params = resolve_sampling(fields, model, len(prompt_ids))
        jobs.append(PromptJob(prompt_ids=prompt_ids, params=params, grammar=grammar))
    return jobs


class CompletionShape:
    """Writes completions and their chunks."""

    def __init__(self, fields: CompletionFields, model: ServedModel) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self._top_logprobs = fields.logprobs
        self._model = model
        self._created = int(time.time())
        self._logprobs: dict[int, CompletionLogprobs] = {}

    def opening_chunks(self, num_choices: int) -> Iterator[dict[str, Any]]:
        """Write nothing: a completion has no role."""
        return iter(())

    def delta_chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        """Write new text and, with the last of it, the end."""
        yield {**self._head(), "choices": [self._choice(delta)]}

    def usage_chunk(self) -> dict[str, Any]:
        """Write a chunk without choices."""
        return {**self._head(), "choices": []}

    def body(self, choices: Sequence[ChoiceDelta]) -> dict[str, Any]:
        """Write the whole completion."""
        return {**self._head(), "choices": [self._choice(choice) for choice in choices]}

    def _choice(self, choice: ChoiceDelta) -> dict[str, Any]:
        logprobs = None
        if self._top_logprobs is not None:
            writer = self._logprobs.setdefault(
                choice.index, CompletionLogprobs(self._model.tokenizer, self._top_logprobs)
            )
            logprobs = writer.write(choice.tokens)
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.fingerprint,
        }
