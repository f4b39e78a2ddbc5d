"""Turns a checked conversation into a generation and a reader of its answers, for every route that takes one.

Runs on the event loop; templates and tokenization go to worker threads. It does not know how answers are
written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vinfer.engine.request import SamplingParams
from vinfer.server.constrain.answer_grammar import Reasoning, compile_answer_grammar
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.content_parts import ImageSource
from vinfer.server.fields.structured_outputs import constrains_answer
from vinfer.server.fields.template_kwargs import THINKING_SWITCH
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
from vinfer.text.reasoning import CLOSING, OPENING, ReasoningParser


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation that is ready for generation.

    Attributes:
        params: sampling parameters of its first answer.
        thinks: whether the model may reason before it answers.
        calls_come_first: an answer that does not begin with a call has none.
    """

    fields: ChatFields
    model: ServedModel
    generation: Generation
    params: SamplingParams
    thinks: Reasoning
    calls_come_first: bool

    def reader(self) -> MessageReader:
        """Return a new reader for one answer."""
        return MessageReader(
            self.model.answer_form,
            self.fields.callable_tools,
            is_parallel=self.fields.parallel_tool_calls,
            calls_come_first=self.calls_come_first,
            must_call=bool(required_tools(self.fields.tools, self.fields.tool_choice)),
            shows_reasoning=self.fields.include_reasoning,
            reasoning=ReasoningParser(is_open=self.thinks.is_open) if self.thinks.is_possible else None,
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
    model.require_head()
    n = num_choices(fields, model, services.config.max_n)
    priority = allowed_priority(fields, context)
    model.engine.check_room(context.tenant)
    images = await prepare_images(services, sources, model)
    prompt_ids = await services.in_worker(chat_prompt_ids, fields, model, images)
    thinks = _reasoning(fields, model, prompt_ids)
    grammar = await compile_answer_grammar(services, fields, model, thinks)
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
            includes_stop=fields.include_stop_str_in_output,
            shown_special_ids=model.answer_form.marker_ids(
                model.tokenizer, reads_calls=bool(fields.callable_tools)
            ),
            continues_prompt=fields.continue_final_message,
        ),
        tenant=context.tenant,
        cache_salt=fields.cache_salt,
        cache_prompt=fields.cache_prompt,
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
        thinks=thinks,
        calls_come_first=constrains_answer(fields.response_format, fields.structured_outputs),
    )


def _reasoning(fields: ChatFields, model: ServedModel, prompt_ids: tuple[int, ...]) -> Reasoning:
    """Return whether the answer may begin with reasoning: the template, or the request, may have decided."""
    if not model.answer_form.has_reasoning:
        return Reasoning(is_possible=False, is_open=False)
    said = _continued_text(fields)
    if said.strip():
        is_open = said.rfind(OPENING) > said.rfind(CLOSING)
        return Reasoning(is_possible=is_open, is_open=is_open)
    is_constrained = constrains_answer(fields.response_format, fields.structured_outputs) or bool(
        required_tools(fields.tools, fields.tool_choice)
    )
    # White space may follow a tag.
    tail = model.tokenizer.decode(prompt_ids[-2 * len(CLOSING) :], skip_special_tokens=False).rstrip()
    is_open = tail.endswith(OPENING)
    # Asked not to think, some models write empty tags before a free answer.
    is_off = is_constrained and fields.chat_template_kwargs.get(THINKING_SWITCH) is False
    is_off = is_off or tail.endswith(CLOSING)
    return Reasoning(is_possible=is_open or not is_off, is_open=is_open)


def _continued_text(fields: ChatFields) -> str:
    """Return the text that the answer goes on with."""
    if not fields.continue_final_message:
        return ""
    return "".join(part.text or "" for part in fields.messages[-1].content or ())
