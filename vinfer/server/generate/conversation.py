"""Turns a checked conversation into a generation and a reader of its answers, for every route that takes one.

Runs on the event loop; templates and tokenization go to worker threads. It does not know how answers are
written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vinfer.engine.request import SamplingParams
from vinfer.server.constrain.grammars import compile_grammar
from vinfer.server.constrain.tool_grammar import compile_tool_grammar
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.content_parts import ImageSource
from vinfer.server.fields.tools import required_tools
from vinfer.server.generate.generation import Generation, PromptJob, TextRules
from vinfer.server.generate.images import prepare_images, request_images
from vinfer.server.generate.message_reader import MessageReader
from vinfer.server.generate.priority import allowed_priority
from vinfer.server.generate.prompts import chat_prompt_ids
from vinfer.server.generate.sampling import num_choices, resolve_sampling
from vinfer.server.http.context import RequestContext
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services
from vinfer.text.reasoning import OPENING, ReasoningParser


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation that is ready for generation.

    Attributes:
        params: sampling parameters of its first answer.
        may_reason: the model may reason before it answers.
        is_reasoning_open: the prompt ends inside the reasoning.
    """

    fields: ChatFields
    model: ServedModel
    generation: Generation
    params: SamplingParams
    may_reason: bool
    is_reasoning_open: bool

    def reader(self) -> MessageReader:
        """Return a new reader for one answer."""
        return MessageReader(
            self.model.answer_form,
            self.fields.callable_tools,
            is_parallel=self.fields.parallel_tool_calls,
            reasoning=ReasoningParser(is_open=self.is_reasoning_open) if self.may_reason else None,
        )


async def prepare(
    services: Services,
    context: RequestContext,
    fields: ChatFields,
    sources: Sequence[ImageSource],
    name: str,
) -> Conversation:
    """Render the prompt, compile what constrains the answers, and resolve how they are sampled.

    Args:
        sources: the conversation's images, in order.
        name: prefix of the engine's request ids.

    Raises:
        VinferError: the model is not ready, or it does not support what the request asks for.
    """
    model = services.models.serving(fields.model)
    context.model_name = model.name
    n = num_choices(fields, model, services.config.max_n)
    priority = allowed_priority(fields, context)
    model.engine.check_room(context.tenant)
    images = await prepare_images(services, sources, model)
    prompt_ids = await services.in_worker(chat_prompt_ids, fields, model, images)
    grammar = await compile_grammar(services, fields, model)
    # An answer that is constrained to a form or to calls has no room for reasoning.
    may_reason = (
        model.answer_form.has_reasoning
        and grammar is None
        and not required_tools(fields.tools, fields.tool_choice)
    )
    is_reasoning_open = may_reason and _ends_with_opening(model, prompt_ids)
    if grammar is None:
        grammar = await compile_tool_grammar(services, fields, model, is_reasoning_open=is_reasoning_open)
    params = resolve_sampling(fields, model, len(prompt_ids))
    generation = Generation(
        name=name,
        model=model,
        jobs=[
            PromptJob(
                prompt_ids=prompt_ids,
                params=params,
                grammar=grammar,
                priority=priority,
                images=request_images(prompt_ids, images, model),
            )
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
        tenant=context.tenant,
        cache_salt=fields.cache_salt,
        arrival_seconds=context.arrival_seconds,
        metrics=services.metrics,
        usage=context.usage,
    )
    return Conversation(
        # An answer needs all of the request but its messages, which may be large.
        fields=fields.model_copy(update={"messages": []}),
        model=model,
        generation=generation,
        params=params,
        may_reason=may_reason,
        is_reasoning_open=is_reasoning_open,
    )


def _ends_with_opening(model: ServedModel, prompt_ids: tuple[int, ...]) -> bool:
    """Return whether the prompt has opened the model's reasoning; whitespace may follow."""
    tail = model.tokenizer.decode(prompt_ids[-2 * len(OPENING) :], skip_special_tokens=False)
    return tail.rstrip().endswith(OPENING)
