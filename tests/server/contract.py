"""Checks every answer that a test gets against `/openapi.json` of the server that sent it."""

from __future__ import annotations

import json
from typing import Any

import httpx
from jsonschema_rs import Draft202012Validator

from vinfer.config import ServerConfig
from vinfer.server.document.openapi import openapi_document
from vinfer.server.model_table import ModelTable
from vinfer.server.route_table import ROUTES

# Fields that take seconds to check item by item.
MAX_CHECKED_BYTES = 200_000
# The smallest body of each form of each route, in the order of the forms.
HI = [{"role": "user", "content": "hi"}]
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [{"model": "fake", "messages": HI}],
    "/v1/completions": [{"model": "fake", "prompt": [4]}],
    "/v1/responses": [{"model": "fake", "input": "hi"}],
    "/v1/messages": [{"model": "fake", "messages": HI, "max_tokens": 4}],
    "/v1/messages/count_tokens": [{"model": "fake", "messages": HI}],
    "/v1/embeddings": [{"model": "fake", "input": "a"}],
    "/v1/count_tokens": [{"model": "fake", "conversation": "a"}, {"model": "fake", "conversation": HI}],
    "/tokenize": [{"prompt": "a"}, {"messages": HI}],
    "/detokenize": [{"tokens": [4]}],
}
ERROR = {"$ref": "#/components/schemas/ErrorBody"}
ANTHROPIC_ERROR = {"$ref": "#/components/schemas/AnthropicErrorBody"}


class Contract:
    """The document, and checks of bodies against it."""

    def __init__(self, config: ServerConfig, models: ModelTable) -> None:
        self.document = openapi_document(config, models, ROUTES)
        self._validators: dict[str, Draft202012Validator] = {}

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """Return the operation of a request; None if there is no such route."""
        if path.startswith("/v1/models/"):
            path = "/v1/models/{id}"
        found: dict[str, Any] | None = self.document["paths"].get(path, {}).get(method.lower())
        return found

    def validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        key = json.dumps(schema)
        if key not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[key] = Draft202012Validator(whole)
        return self._validators[key]

    def request_validator(self, method: str, path: str) -> Draft202012Validator:
        operation = self.operation(method, path)
        assert operation is not None
        return self.validator(operation["requestBody"]["content"]["application/json"]["schema"])

    def check(self, response: httpx.Response) -> None:
        """Fail the test if the document does not allow the answer, or a request that was accepted."""
        request = response.request
        if request.method == "HEAD" or len(response.content) > MAX_CHECKED_BYTES:
            return
        operation = self.operation(request.method, request.url.path)
        if operation is None:
            assert response.status_code >= 400
            is_anthropic = f"{request.url.path}/".startswith("/v1/messages/")
            error = ANTHROPIC_ERROR if is_anthropic else ERROR
            self.validator(error).validate(response.json())
            return
        answers = operation["responses"]
        assert str(response.status_code) in answers, (request.method, request.url.path, response.status_code)
        content = answers[str(response.status_code)]["content"]
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in content
        if media_type == "application/json":
            self.validator(content[media_type]["schema"]).validate(response.json())
        elif media_type == "text/event-stream":
            self._check_events(content[media_type]["schema"], response.text)
        if response.status_code == 200 and "requestBody" in operation:
            body = json.loads(request.content)
            self.request_validator(request.method, request.url.path).validate(body)

    def _check_events(self, schema: dict[str, Any], text: str) -> None:
        """Check each event and its data parsed as JSON, because JSON Schema does not look into strings."""
        data_schema = schema["properties"]["data"]
        chunk_schema = data_schema.get("anyOf", [data_schema])[-1]["contentSchema"]
        for event in filter(None, text.split("\n\n")):
            if event.startswith(":"):
                continue
            fields = dict(line.split(": ", 1) for line in event.split("\n"))
            self.validator(schema).validate(fields)
            if fields["data"] != "[DONE]":
                self.validator(chunk_schema).validate(json.loads(fields["data"]))


class CheckedClient(httpx.Client):
    """A client whose answers are all checked, except those that the test reads piece by piece."""

    def __init__(self, contract: Contract, **settings: Any) -> None:
        super().__init__(**settings)
        self._contract = contract

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        response = super().send(request, stream=stream, **options)
        if not stream:
            self._contract.check(response)
        return response
