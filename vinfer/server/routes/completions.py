"""`POST /v1/completions`. Event loop; tokenization goes to worker threads."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterator, Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from vinfer.engine.grammar import Grammar
from vinfer.engine.request import TokenLogprobs
from vinfer.server.answers import bodies
from vinfer.server.constrain.grammars import compile_grammar
from vinfer.server.fields.completions import COMPLETION, CompletionFields
from vinfer.server.generate.admission import admit
from vinfer.server.generate.answer import AnswerShape, add_usage, answer, usage
from vinfer.server.generate.echo import Echo, echoes
from vinfer.server.generate.generation import ChoiceDelta, Generation, PromptJob, TextRules
from vinfer.server.generate.logprobs import CompletionLogprobs
from vinfer.server.generate.prompts import PromptIds, completion_prompt_ids
from vinfer.server.generate.sampling import (
    lowered_max_tokens,
    num_candidates,
    resolve_sampling,
)
from vinfer.server.http.body import read_fields
from vinfer.server.http.context import RequestContext
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services


async def completions(services: Services, request: HttpRequest) -> ASGIApp | JSONResponse:
    """Complete one or more prompts, whole or streamed.

    Raises:
        VinferError: the request is refused or fails.
        ClientLeftError: the client closed the connection.
    """
    context = RequestContext.of(request.scope)
    fields = await read_fields(request, services, COMPLETION.parse)
    admission = admit(services, context, fields)
    model, n = admission.model, admission.n
    best_of = num_candidates(fields, n, services.config.max_n)
    prompts = await services.in_worker(completion_prompt_ids, fields, model)
    grammar = await compile_grammar(services, fields, model)
    jobs = _jobs(fields, model, prompts, grammar, is_ranked=best_of > n, priority=admission.priority)
    context.max_tokens = lowered_max_tokens(fields, [job.params for job in jobs])
    echoed = await services.in_worker(echoes, fields, prompts, model)
    generation = Generation(
        name=f"cmpl-{uuid.uuid4().hex}",
        model=model,
        jobs=jobs,
        n=best_of,
        rules=TextRules.of(
            fields,
            continues_prompt=True,
            # Harnesses that score an echoed prompt ask for one token and cut one entry off the end.
            lists_stop_token=fields.echo,
        ),
        fields=fields,
        context=context,
        metrics=services.metrics,
    )
    shape = CompletionShape(fields, generation, prompts, echoed, n=n, best_of=best_of)
    return await answer(services, request, generation, shape, streams=fields.stream)


def _jobs(
    fields: CompletionFields,
    model: ServedModel,
    prompts: Sequence[PromptIds],
    grammar: Grammar | None,
    *,
    is_ranked: bool,
    priority: int,
) -> list[PromptJob]:
    jobs = []
    for prompt_ids in prompts:
        params = resolve_sampling(fields, model, len(prompt_ids))
        if is_ranked and params.top_logprobs is None:
            params = dataclasses.replace(params, top_logprobs=0)
        jobs.append(
            PromptJob(
                prompt_ids=prompt_ids,
                params=params,
                scores_prompt=fields.scores_prompt,
                grammar=grammar,
                priority=priority,
            )
        )
    return jobs


def _best(candidates: Sequence[ChoiceDelta], *, n: int, best_of: int) -> list[ChoiceDelta]:
    """Return, of each prompt's `best_of` candidates, the `n` with the highest mean logprob, best first.

    Equal candidates keep their order, and so do all of them if `best_of` equals `n`.
    """
    if best_of == n:
        return list(candidates)
    kept: list[ChoiceDelta] = []
    for first in range(0, len(candidates), best_of):
        ranked = sorted(candidates[first : first + best_of], key=lambda choice: -choice.mean_logprob)
        kept += ranked[:n]
    return [dataclasses.replace(choice, index=index) for index, choice in enumerate(kept)]


class CompletionShape(AnswerShape):
    """Writes completions and their chunks.

    Args:
        echoed: the echoes of the prompts; empty if nothing is echoed.
        n: number of choices returned for each prompt.
        best_of: number of choices generated for each prompt.
    """

    def __init__(
        self,
        fields: CompletionFields,
        generation: Generation,
        prompts: Sequence[PromptIds],
        echoed: Sequence[Echo],
        *,
        n: int,
        best_of: int,
    ) -> None:
        self._fields = fields
        self._generation = generation
        self._model = generation.model
        self._created = int(time.time())
        self._prompts = prompts
        self._echoed = echoed
        self._n = n
        self._best_of = best_of
        self._writers: dict[int, _ChoiceWriter] = {}

    def delta_events(self, delta: ChoiceDelta) -> Iterator[bodies.CompletionChunk]:
        """Yield new text and, with the last of it, the finish reason; an echoed prompt comes in one piece."""
        writer = self._writer(delta.index)
        writer.take(delta)
        if not writer.waits_for_prompt:
            yield self._chunk([writer.write(delta)])

    async def end(self) -> Sequence[bodies.CompletionChunk]:
        """Return a chunk without choices, if the usage is asked for."""
        if not self._fields.includes_usage:
            return ()
        return [{**self._chunk([]), "usage": usage(self._generation)}]

    async def whole(self, choices: Sequence[ChoiceDelta]) -> bodies.Completion:
        """Return the whole completion."""
        best = _best(choices, n=self._n, best_of=self._best_of)
        return {
            "id": self._generation.name,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.manifest.key,
            "choices": [self._whole_choice(choice) for choice in best],
            "usage": usage(self._generation),
        }

    def _chunk(self, choices: list[bodies.CompletionChunkChoice]) -> bodies.CompletionChunk:
        chunk: bodies.CompletionChunk = {
            "id": self._generation.name,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.name,
            "system_fingerprint": self._model.manifest.key,
            "choices": choices,
        }
        add_usage(chunk, self._fields, self._generation)
        return chunk

    def _whole_choice(self, choice: ChoiceDelta) -> bodies.CompletionChoice:
        writer = self._writer(choice.index)
        writer.take(choice)
        assert choice.finish_reason is not None
        return {**writer.write(choice), "finish_reason": choice.finish_reason}

    def _writer(self, index: int) -> _ChoiceWriter:
        if index not in self._writers:
            prompt = index // self._n
            echo = self._echoed[prompt] if self._echoed else None
            prompt_ids = self._prompts[prompt] if self._fields.return_token_ids else None
            self._writers[index] = _ChoiceWriter(self._model, self._fields.logprobs, echo, prompt_ids)
        return self._writers[index]


class _ChoiceWriter:
    """Writes one choice in pieces, the first of them with the echoed prompt in front.

    Args:
        top_logprobs: None for no logprobs.
        echo: None if the prompt is not echoed.
        prompt_ids: None if no token ids are returned.
    """

    def __init__(
        self,
        model: ServedModel,
        top_logprobs: int | None,
        echo: Echo | None,
        prompt_ids: PromptIds | None,
    ) -> None:
        self._echo = echo
        self._returns_ids = prompt_ids is not None
        self._prompt_ids = prompt_ids
        self._held_ids: list[int] = []
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._logprobs: CompletionLogprobs | None = None
        if top_logprobs is not None:
            text_offset = 0 if echo is None else len(echo.text)
            self._logprobs = CompletionLogprobs(model.tokenizer, top_logprobs, text_offset)

    def take(self, delta: ChoiceDelta) -> None:
        """Keep the prompt's logprobs in a delta, and its token ids."""
        self._prompt_logprobs += delta.prompt_logprobs
        self._held_ids += delta.token_ids

    @property
    def waits_for_prompt(self) -> bool:
        """Whether the prompt is echoed with logprobs and not yet fully scored."""
        echo = self._echo
        return echo is not None and echo.scores and len(self._prompt_logprobs) < len(echo.token_ids) - 1

    def write(self, delta: ChoiceDelta) -> bodies.CompletionChunkChoice:
        """Return what the choice has gained."""
        text = delta.text if self._echo is None else self._echo.text + delta.text
        logprobs: bodies.ParallelLogprobs | None = None
        if self._logprobs is not None:
            logprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
            if self._echo is not None:
                self._logprobs.add_prompt(logprobs, self._echo, self._prompt_logprobs)
            self._logprobs.add(logprobs, delta.tokens)
        self._echo = None
        return {
            "index": delta.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
            **self._token_ids(),
        }

    def _token_ids(self) -> bodies.TokenIdsOfChoice:
        """Return the new token ids and, once, the prompt's, if they were asked for."""
        if not self._returns_ids:
            return {}
        written: bodies.TokenIdsOfChoice = {"token_ids": self._held_ids}
        if self._prompt_ids is not None:
            written["prompt_token_ids"] = self._prompt_ids
        self._held_ids, self._prompt_ids = [], None
        return written
