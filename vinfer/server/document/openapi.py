"""`GET /openapi.json`: the API as an OpenAPI 3.1 document, built from the types and rules of the routes.

Pure functions, run in a worker thread; the document depends on the server's config and on its models. Only a
400 reports what no schema can express, for example that `best_of` must be at least `n`.
"""

from __future__ import annotations

import functools
import http
import json
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import TypeAdapter
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse

from vinfer.config import ServerConfig
from vinfer.errors import NotReadyError
from vinfer.server.answers.bodies import ErrorBody
from vinfer.server.document import openapi_models
from vinfer.server.document.operation import AnswerType, Operation, Operations
from vinfer.server.fields.form import RequestForm
from vinfer.server.fields.treatment import FieldRule, Treatment
from vinfer.server.http.auth import PUBLIC_PATHS
from vinfer.server.json_object import Json
from vinfer.server.model_table import ModelTable
from vinfer.server.services import Services
from vinfer.version import __version__

_IN_OPERATION_ID = str.maketrans("/.", "__", "{}")


async def openapi(services: Services, request: HttpRequest) -> JSONResponse:
    """Return this document."""
    return JSONResponse(
        await services.in_worker(openapi_document, services.config, services.models, request.app.state.routes)
    )


def openapi_document(config: ServerConfig, models: ModelTable, routes: Operations) -> Json:
    """Describe the API of a server with this config and these models."""
    operations = {
        route: operation
        for route, operation in routes.items()
        if config.metrics or route != ("GET", "/metrics")
    }
    paths: dict[str, Json] = {}
    for (method, path), operation in operations.items():
        written = paths.setdefault(path.replace(":path}", "}"), {})
        written[method.lower()] = _operation(method, path, operation, openapi_models.names(models))
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "vinfer",
            "version": __version__,
            "description": "Every request field is applied, refused by name, or accepted without effect.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {
                **_answer_schemas(operations.values()),
                **_request_schemas(operations.values(), config, models),
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
        "security": [] if config.api_keys_file is None else [{"key": []}, {"x_api_key": []}],
    }


def _operation(method: str, path: str, operation: Operation, names: list[str]) -> Json:
    written: Json = {
        "operationId": f"{method.lower()}{path.partition(':')[0]}".translate(_IN_OPERATION_ID),
        "summary": operation.summary,
        "responses": _responses(operation),
    }
    if path in PUBLIC_PATHS:
        written["security"] = []
    parameters: list[Json] = []
    if operation.query_names_model:
        about = "Id of the model; may be left out if only one is served."
        parameters.append({"name": "model", "in": "query", "description": about, "schema": {"enum": names}})
        parameters[-1]["required"] = len(names) > 1
    if "{id:path}" in path:
        parameters.append({"name": "id", "in": "path", "required": True, "schema": {"enum": names}})
    if parameters:
        written["parameters"] = parameters
    if operation.forms:
        schemas = [_reference(form.fields) for form in operation.forms]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        written["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return written


def _responses(operation: Operation) -> Json:
    if operation.answer is not None:
        schema = _reference(operation.answer)
    else:
        schema = {"type": "object" if operation.media_type == "application/json" else "string"}
    content: Json = {operation.media_type: {"schema": schema}}
    if operation.event is not None:
        content["text/event-stream"] = _stream(operation.event, names_events=operation.names_events)
    answers: dict[str, Json] = {"200": {"description": "OK", "content": content}}
    for status in sorted({error.status for error in operation.errors}):
        answers[str(status)] = _answer(status, operation.error)
    if operation.not_ready is not None:
        answers[str(NotReadyError.status)] = _answer(NotReadyError.status, operation.not_ready)
    return answers


def _stream(event: AnswerType, *, names_events: bool) -> Json:
    """Describe each event of a stream as an object, as OpenAPI 3.2 does for server-sent events."""
    data: Json = {"type": "string", "contentMediaType": "application/json"}
    if names_events:
        data["contentSchema"] = _reference(event)
        about = "Each event is named after its type, and the last one says how the stream ended."
    else:
        chunk = {**data, "contentSchema": {"anyOf": [_reference(event), _reference(ErrorBody)]}}
        data = {"anyOf": [{"const": "[DONE]"}, chunk]}
        about = "The data of the last event is [DONE]."
    return {
        "schema": {
            "type": "object",
            "description": "One event of the stream that `stream: true` asks for, not the whole stream. "
            f"{about} Blank lines between events are pings, and so are events named ping.",
            "properties": {"event": {"type": "string"}, "data": data},
            "required": ["data"],
        }
    }


def _answer(status: int, body: AnswerType) -> Json:
    content = {"application/json": {"schema": _reference(body)}}
    return {"description": http.HTTPStatus(status).phrase, "content": content}


def _reference(model: AnswerType) -> Json:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _answer_schemas(operations: Iterable[Operation]) -> Json:
    types: list[AnswerType] = []
    for operation in operations:
        known = (operation.answer, operation.event, operation.error)
        types += [each for each in known if each is not None and each not in types]
    return _schemas(tuple(types), "serialization")


def _request_schemas(operations: Iterable[Operation], config: ServerConfig, models: ModelTable) -> Json:
    forms = [form for operation in operations for form in operation.forms]
    schemas = _schemas(tuple(form.fields for form in forms), "validation")
    for schema in schemas.values():
        # The types of the history allow unknown keys in any case.
        is_strict = schema.get("additionalProperties") is False and config.unknown_fields == "refuse"
        schema["additionalProperties"] = not is_strict
        for name, written in schema["properties"].items():
            if name not in schema.get("required", ()):
                schema["properties"][name] = _or_null(written)
    for form in forms:
        schema = schemas[form.fields.__name__]
        _write_rules(schema, form)
        for name in ("n", "best_of"):
            if name in schema["properties"]:
                schema["properties"][name]["maximum"] = config.max_n
    openapi_models.narrow_to_models(schemas, forms, models)
    for schema in schemas.values():
        _hide_rules_between_fields(schema)
    return schemas


def _write_rules(schema: Json, form: RequestForm[Any]) -> None:
    """Write the fields that a body may have besides those that are applied.

    Refused fields pass with neutral values, and aliases are described elsewhere. As patterns they are checked
    like the others, but generators of clients do not write code for them.
    """
    patterns: Json = {}
    for name, rule in form.rules.items():
        if rule.treatment is Treatment.ALIAS:
            about = f"Another name of `{rule.reason}`."
            patterns[f"^{name}$"] = {**schema["properties"][rule.reason], "description": about}
        elif rule.treatment is Treatment.REFUSED:
            patterns[f"^{name}$"] = _without_effect(rule)
        elif rule.treatment is Treatment.ACCEPTED:
            schema["properties"][name] = _without_effect(rule)
    if patterns:
        schema["patternProperties"] = patterns


def _hide_rules_between_fields(schema: Json) -> None:
    """Write the rules between fields as a condition: generators take a composition for a type of its own."""
    rules = {key: schema.pop(key) for key in ("allOf", "anyOf") if key in schema}
    if rules:
        schema |= {"if": rules, "else": False}


def _without_effect(rule: FieldRule) -> Json:
    if rule.treatment is Treatment.ACCEPTED:
        return {"description": "Accepted without effect."}
    return {"description": f"Refused: {rule.reason}.", "enum": [None, *rule.neutral]}


def _or_null(schema: Json) -> Json:
    if {"type": "null"} in schema.get("anyOf", ()):
        return schema
    about: Json = {key: schema.pop(key) for key in ("default", "title", "description") if key in schema}
    if not schema:
        # Anything may be null already, and generators fail on an alternative without a type.
        return about
    return {"anyOf": [schema, {"type": "null"}], **about}


def _schemas(types: tuple[AnswerType, ...], mode: Literal["validation", "serialization"]) -> Json:
    schemas: Json = json.loads(_written_schemas(types, mode))
    return schemas


@functools.cache
def _written_schemas(types: tuple[AnswerType, ...], mode: Literal["validation", "serialization"]) -> str:
    """Write the schemas of types as JSON; this takes much longer than all the rest of the document."""
    _, written = TypeAdapter.json_schemas(
        [(each.__name__, mode, TypeAdapter[Any](each)) for each in types],  # type: ignore[arg-type]
        ref_template="#/components/schemas/{model}",
    )
    schemas: Json = written["$defs"]
    for schema in schemas.values():
        for inner in schema.get("properties", {}).values():
            # A generated client would send it, or expect it in an answer that leaves the field out.
            inner.pop("default", None)
    return json.dumps(schemas)
