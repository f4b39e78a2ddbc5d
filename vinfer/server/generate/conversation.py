"""Turns a checked conversation into a generation and a reader of its answers, for every route that takes one.

Runs on the event loop; templates and tokenization go to worker threads. It does not know how answers are
written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vinfer.engine.request import SamplingParams
from vinfer.server.constrain.answer_grammar import (
    AnswerRules,
    Reasoning,
    answer_rules,
    compile_answer_grammar,
)
from vinfer.server.fields.chat import ChatFields
from vinfer.server.fields.content_parts import ImageSource
from vinfer.server.fields.template_kwargs import THINKING_SWITCH
from vinfer.server.generate.admission import admit
from vinfer.server.generate.generation import Generation, PromptJob, TextRules
from vinfer.server.generate.images import prepare_images, request_images
from vinfer.server.generate.message_reader import MessageReader
from vinfer.server.generate.prompts import chat_prompt_ids
from vinfer.server.generate.sampling import lowered_max_tokens, resolve_sampling
from vinfer.server.http.context import RequestContext
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services
from vinfer.text.reasoning import CLOSING, OPENING, ReasoningParser


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation that is ready for generation.

    Attributes:
        params: sampling parameters of its first answer.
        rules: what its answers may be.
        thinks: whether the model may reason before it answers.
    """

    fields: ChatFields
    model: ServedModel
    generation: Generation
    params: SamplingParams
    rules: AnswerRules
    thinks: Reasoning

    def reader(self) -> MessageReader:
        """Return a new reader for one answer."""
        return MessageReader(
            self.model.answer_form,
            [tool for _, tool in self.rules.tools],
            is_parallel=self.fields.parallel_tool_calls,
            # Without a call at its beginning, an answer of a form has none.
            calls_come_first=self.rules.form is not None,
            must_call=bool(self.rules.required),
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
    """Decide what constrains the answers, render the prompt, and resolve how answers are sampled.

    Args:
        sources: the conversation's images, in order.
        name: prefix of the engine's request ids.

    Raises:
        VinferError: the model is not ready, or it does not support what the request asks for.
    """
    admission = admit(services, context, fields)
    model = admission.model
    rules = await answer_rules(services, fields)
    images = await prepare_images(services, sources, model)
    prompt_ids = await services.in_worker(chat_prompt_ids, fields, model, images)
    thinks = _reasoning(fields, rules, model, prompt_ids)
    grammar = await compile_answer_grammar(services, rules, model, thinks)
    params = resolve_sampling(fields, model, len(prompt_ids))
    context.max_tokens = lowered_max_tokens(fields, [params])
    generation = Generation(
        name=name,
        model=model,
        jobs=[
            PromptJob(
                prompt_ids=prompt_ids,
                params=params,
                grammar=grammar,
                priority=admission.priority,
                images=request_images(prompt_ids, images, model),
            )
        ],
        n=admission.n,
        rules=TextRules.of(
            fields,
            shown_special_ids=model.answer_form.marker_ids(model.tokenizer, reads_calls=bool(rules.tools)),
            continues_prompt=fields.continue_final_message,
        ),
        fields=fields,
        context=context,
        metrics=services.metrics,
    )
    return Conversation(
        # An answer needs all of the request but its messages, which may be large.
        fields=fields.model_copy(update={"messages": []}),
        model=model,
        generation=generation,
        params=params,
        rules=rules,
        thinks=thinks,
    )


def _reasoning(
    fields: ChatFields, rules: AnswerRules, model: ServedModel, prompt_ids: tuple[int, ...]
) -> Reasoning:
    """Return whether the answer may begin with reasoning: the template, or the request, may have decided."""
    if not model.answer_form.has_reasoning:
        return Reasoning(is_possible=False, is_open=False)
    said = _continued_text(fields)
    if said.strip():
        is_open = said.rfind(OPENING) > said.rfind(CLOSING)
        return Reasoning(is_possible=is_open, is_open=is_open)
    # White space may follow a tag.
    tail = model.tokenizer.decode(prompt_ids[-2 * len(CLOSING) :], skip_special_tokens=False).rstrip()
    is_open = tail.endswith(OPENING)
    # Asked not to think, some models write empty tags before a free answer.
    is_off = rules.constrains and fields.chat_template_kwargs.get(THINKING_SWITCH) is False
    is_off = is_off or tail.endswith(CLOSING)
    return Reasoning(is_possible=is_open or not is_off, is_open=is_open)


def _continued_text(fields: ChatFields) -> str:
    """Return the text that the answer goes on with."""
    if not fields.continue_final_message:
        return ""
    return "".join(part.text or "" for part in fields.messages[-1].content or ())
