"""`GET /v1/models`, `GET /v1/models/{id}` and `POST /v1/count_tokens`: served models, and token counts."""

from __future__ import annotations

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from vinfer.server.answers.bodies import ModelInfo, ModelList, TokenCount
from vinfer.server.fields.count import CountMessages, parse_count
from vinfer.server.generate.images import image_sources, prepare_images
from vinfer.server.generate.prompts import count_prompt_tokens
from vinfer.server.http.body import read_fields
from vinfer.server.http.context import RequestContext
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services


async def list_models(services: Services, request: HttpRequest) -> JSONResponse:
    """List the served models."""
    models = [_model_object(model) for model in services.models.served_models]
    body: ModelList = {"object": "list", "data": models}
    return JSONResponse(body)


async def show_model(services: Services, request: HttpRequest) -> JSONResponse:
    """Describe one model; its id may contain slashes.

    Raises:
        ModelNotFoundError: there is no such model.
        NotReadyError: it is still loading.
    """
    return JSONResponse(_model_object(services.models.serving(request.path_params["id"])))


async def count_tokens(services: Services, request: HttpRequest) -> JSONResponse:
    """Count the tokens of a text or a conversation.

    Raises:
        RequestError: the request is refused.
    """
    fields = await read_fields(request, services, parse_count)
    model = services.models.serving(fields.model)
    RequestContext.of(request.scope).model_name = model.name
    messages = fields.conversation if isinstance(fields, CountMessages) else ()
    images = await prepare_images(services, image_sources(messages, "conversation"), model)
    count = await services.in_worker(count_prompt_tokens, fields, model, images)
    body: TokenCount = {"model": model.name, "count": count}
    return JSONResponse(body)


def _model_object(model: ServedModel) -> ModelInfo:
    parity = model.parity
    return {
        "id": model.name,
        "object": "model",
        "created": model.manifest.created,
        "owned_by": "easydel",
        "permission": [],
        "root": model.name,
        "max_model_len": model.max_model_len,
        "parity_verdict": model.parity_verdict,
        "parity": None if parity is None else parity.model_dump(),
    }
