"""`GET /v1/capabilities`: what each model supports, read from the tables that the routes use.

Event loop. It defines no fields or limits of its own.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from vinfer.bundle.sampling import NUMBERS
from vinfer.config import ServerConfig
from vinfer.engine.request import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, MAX_TOP_LOGPROBS
from vinfer.server.document import capability_types
from vinfer.server.document.operation import Operations
from vinfer.server.fields.anthropic.messages import MESSAGES, MESSAGES_COUNT
from vinfer.server.fields.chat import CHAT
from vinfer.server.fields.completions import COMPLETION, MAX_PROMPTS
from vinfer.server.fields.count import COUNT_MESSAGES, MAX_PROMPT_CHARS
from vinfer.server.fields.embeddings import EMBEDDING
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.responses.body import RESPONSES
from vinfer.server.fields.sampling import MAX_STOP_STRING_CHARS, MAX_STOP_STRINGS, SamplingFields
from vinfer.server.fields.structured_outputs import ResponseFormat
from vinfer.server.fields.template_kwargs import reads_reasoning_effort, settable_kwargs
from vinfer.server.fields.tokenization import MAX_TOKENS, TOKENIZE_MESSAGES
from vinfer.server.fields.treatment import Treatment
from vinfer.server.generate.sampling import default_max_tokens
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services
from vinfer.version import __version__

# Forms that a model without a chat template does not support.
_CONVERSATIONS: tuple[RequestForm[Any], ...] = (
    CHAT,
    RESPONSES,
    MESSAGES,
    MESSAGES_COUNT,
    COUNT_MESSAGES,
    TOKENIZE_MESSAGES,
)
_GENERATING: tuple[RequestForm[Any], ...] = (CHAT, RESPONSES, MESSAGES, COMPLETION)
"""Forms that a model without a head does not support."""


async def capabilities(services: Services, request: HttpRequest) -> JSONResponse:
    """List per model the fields applied, refused and accepted without effect, and the limits."""
    config = services.config
    body = capability_types.Capabilities(
        version=__version__,
        unknown_fields=config.unknown_fields,
        max_body_bytes=config.max_body_bytes,
        request_timeout_seconds=config.request_timeout_seconds,
        models=[
            _of_model(model, config, request.app.state.routes) for model in services.models.served_models
        ],
    )
    return JSONResponse(body.model_dump())


def _of_model(
    model: ServedModel, config: ServerConfig, routes: Operations
) -> capability_types.ModelCapabilities:
    forms = list(_forms(model, routes))
    sampling = model.sampling
    return capability_types.ModelCapabilities(
        id=model.name,
        task=model.card.task,
        architecture=model.card.architecture,
        max_model_len=model.max_model_len,
        num_slots=model.manifest.num_slots,
        vocab_size=model.card.vocab_size,
        parity_verdict=model.parity_verdict,
        prompt_logprobs=model.manifest.has_prompt_logprobs,
        deterministic=model.manifest.is_deterministic,
        embeddings=model.manifest.embeddings,
        forms=[_of_form(path, form) for path, form in forms],
        response_formats=list(typing.get_args(ResponseFormat.model_fields["type"].annotation)),
        chat_template_kwargs=settable_kwargs(model),
        reasoning_effort=reads_reasoning_effort(model),
        limits=capability_types.RequestLimits(
            max_n=config.max_n,
            max_top_logprobs=MAX_TOP_LOGPROBS,
            max_logit_bias=MAX_LOGIT_BIAS,
            max_stop=MAX_STOP_STRINGS,
            max_stop_string_chars=MAX_STOP_STRING_CHARS,
            max_stop_token_ids=MAX_STOP_TOKEN_IDS - len(model.card.eos_token_ids),
            max_prompts=MAX_PROMPTS,
            max_tokenize_chars=MAX_PROMPT_CHARS,
            max_detokenize_tokens=MAX_TOKENS,
            max_images=0 if model.manifest.images is None else config.images.max_per_request,
        ),
        sampling_defaults=capability_types.SamplingDefaultValues(
            n=sampling.n, **{number.name: getattr(sampling, number.name) for number in NUMBERS}
        ),
        default_max_tokens={
            path: default_max_tokens(form.fields, model)
            for path, form in forms
            if issubclass(form.fields, SamplingFields)
        },
    )


def _forms(model: ServedModel, routes: Operations) -> Iterator[tuple[str, RequestForm[Any]]]:
    """Yield every form of every route that this model supports, with the route's path."""
    for (_, path), operation in routes.items():
        for form in operation.forms:
            if form in _CONVERSATIONS and model.chat_template is None:
                continue
            if form is EMBEDDING and model.manifest.embeddings is None:
                continue
            if form in _GENERATING and not model.card.has_head:
                continue
            yield path, form


def _of_form(path: str, form: RequestForm[Any]) -> capability_types.FormCapabilities:
    def treated(treatment: Treatment) -> list[str]:
        return [field for field, rule in form.rules.items() if rule.treatment is treatment]

    return capability_types.FormCapabilities(
        path=path,
        required=[name for name, field in form.fields.model_fields.items() if field.is_required()],
        applied=treated(Treatment.APPLIED),
        refused=[
            capability_types.RefusedField(
                field=field, reason=form.rules[field].reason, neutral=list(form.rules[field].neutral)
            )
            for field in treated(Treatment.REFUSED)
        ],
        accepted=treated(Treatment.ACCEPTED),
        aliases={field: form.rules[field].reason for field in treated(Treatment.ALIAS)},
    )
