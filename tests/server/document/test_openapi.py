"""`/openapi.json` matches the server: the same routes, the same limits, and bodies as it describes them.

Every answer that a test of `tests/server` gets through `RunningServer.http` is checked against the document
(`contract.py`). The tests here cover the document's form, a success of each route, and checks that fail.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest
from contract import BODIES, HI, Contract
from examples import examples
from fake_engine import EMBEDDING_SIZE, VOCAB_SIZE, FakeEngine, served_model
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from refusals import BAD_CHAT_FIELDS, BAD_COMPLETION_FIELDS
from running_server import RunningServer, Start

import vinfer
from vinfer.bundle.certificate import ParityFigures, ParityReport, ParityThresholds
from vinfer.config import ServerConfig
from vinfer.server.document.openapi import openapi_document
from vinfer.server.document.openapi_models import numbers_below
from vinfer.server.fields.treatment import Treatment
from vinfer.server.http.auth import PUBLIC_PATHS
from vinfer.server.model_table import ModelTable
from vinfer.server.route_table import ROUTES
from vinfer.text.tokenizer import Tokenizer

STREAM = {"stream": True, "stream_options": {"include_usage": True}}
LOGPROBS: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
# A successful request for each route: its body or its query.
SUCCESSES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/v1/chat/completions", {"messages": HI, "n": 2, **LOGPROBS}),
    ("POST", "/v1/chat/completions", {"messages": HI, "max_tokens": 3, **LOGPROBS, **STREAM}),
    ("POST", "/v1/completions", {"prompt": ["a", [4, 5]], "logprobs": 1}),
    ("POST", "/v1/completions", {"prompt": "a", "logprobs": 0, **STREAM}),
    ("POST", "/v1/responses", {"input": "hi", "max_output_tokens": 3}),
    ("POST", "/v1/responses", {"input": HI, "stream": True}),
    ("POST", "/v1/messages", {"messages": HI, "max_tokens": 3}),
    ("POST", "/v1/messages", {"messages": HI, "max_tokens": 3, "stream": True}),
    ("POST", "/v1/messages/count_tokens", {"messages": HI}),
    ("POST", "/v1/embeddings", {"input": ["a", [4, 5]], "dimensions": 2}),
    ("POST", "/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
    ("POST", "/v1/count_tokens", {"conversation": "a"}),
    ("POST", "/v1/count_tokens", {"conversation": HI}),
    ("POST", "/tokenize", {"prompt": "a", "return_token_strs": True}),
    ("POST", "/tokenize", {"messages": HI}),
    ("POST", "/detokenize", {"tokens": [4, 5]}),
    ("GET", "/tokenizer_info", {"model": "fake"}),
    ("GET", "/v1/models", {}),
    ("GET", "/v1/models/fake", {}),
    ("GET", "/v1/capabilities", {}),
    ("GET", "/", {}),
    ("GET", "/liveness", {}),
    ("GET", "/readiness", {}),
    ("GET", "/health", {}),
    ("GET", "/version", {}),
    ("GET", "/openapi.json", {}),
    ("GET", "/metrics", {}),
]
# Misspellings, sums, order and the prompt's own length are beyond JSON Schema.
NO_MATTER_OF_SCHEMA: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "hi", "nmae": "good"}]},
    {"max_completion_tokens": 5},
    {"stop_token_ids": list(range(4, 20))},
    {"min_tokens": 5},
    {"continue_final_message": True},
    {"best_of": 2, "stream": True},
    {"best_of": 2, "n": 3},
    {"max_tokens": 0, "echo": True, "min_tokens": 1},
]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document(ServerConfig(), ModelTable(["fake"]), ROUTES)


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def test_every_route_is_in_the_document(document: dict[str, Any]) -> None:
    written = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert written == {(method, path.replace(":path", "")) for method, path in ROUTES}


def test_every_route_succeeds_above(document: dict[str, Any]) -> None:
    contract = Contract(ServerConfig(), ModelTable(["fake"]))
    tried = [id(contract.operation(method, path)) for method, path, _ in SUCCESSES]
    operations = [operation for path in contract.document["paths"].values() for operation in path.values()]
    assert {id(operation) for operation in operations} == set(tried)


@pytest.mark.parametrize(("method", "path", "given"), SUCCESSES)
def test_success(server: RunningServer, method: str, path: str, given: dict[str, Any]) -> None:
    response = (
        server.http.get(path, params=given)
        if method == "GET"
        else server.http.post(path, json={"model": "fake", **given})
    )
    assert response.status_code == 200, response.text


def test_model_with_a_parity_report(start: Start) -> None:
    figures = ParityFigures(
        num_prompts=2,
        num_tokens=128,
        largest_error=1e-6,
        mean_error=1e-7,
        top1_agreement=1.0,
        mean_kl=1e-9,
        largest_kl=1e-8,
        num_wrong_tokens=0,
    )
    report = ParityReport(
        verdict="passed",
        measured=1_700_000_000,
        versions={"transformers": "5.5.0"},
        dtype="float32",
        reference_dtype="float32",
        figures=figures,
        thresholds=ParityThresholds(max_error=1e-5, max_wrong_tokens=0, tie=1e-6),
    )
    with start() as server:
        (model,) = server.models.served_models
        server.models.serve(dataclasses.replace(model, parity=report))
        assert server.http.get("/v1/models/fake").json()["parity"]["measured"] == 1_700_000_000
        capabilities = server.http.get("/v1/capabilities").json()
        assert capabilities["models"][0]["parity_verdict"] == "passed"


def test_form(document: dict[str, Any]) -> None:
    """What the OpenAPI 3.1 specification requires of each object in the document."""
    assert set(document) == {"openapi", "info", "paths", "components", "security"}
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == vinfer.__version__
    operation_ids = []
    for path, methods in document["paths"].items():
        assert path.startswith("/")
        for method, operation in methods.items():
            assert method in {"get", "post"}
            assert ("requestBody" in operation) == (method == "post")
            assert operation["summary"]
            operation_ids.append(operation["operationId"])
            parameters = operation.get("parameters", [])
            assert all({"name", "in", "schema"} <= set(parameter) for parameter in parameters)
            in_path = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
            assert in_path == ({"id"} if "{id}" in path else set())
            assert all(answer["description"] for answer in operation["responses"].values())
            assert all(100 <= int(status) < 600 for status in operation["responses"])
    assert len(set(operation_ids)) == len(operation_ids)


def test_every_schema_is_one(document: dict[str, Any]) -> None:
    schemas = [
        *document["components"]["schemas"].values(),
        *(node["schema"] for node in nodes(document["paths"]) if "schema" in node),
        *(node["contentSchema"] for node in nodes(document["paths"]) if "contentSchema" in node),
    ]
    assert len(schemas) > 60
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
    references = {node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)}
    components = document["components"]["schemas"]
    assert references <= {f"#/components/schemas/{name}" for name in components}
    # No schema is unused.
    assert {reference.rpartition("/")[2] for reference in references} == set(components)


def test_the_schemas_refuse_what_the_routes_refuse(server: RunningServer) -> None:
    """The lists are in `refusals.py`; `test_request_fields` shows that the routes refuse them."""
    contract = Contract(ServerConfig(), server.models)
    chat = contract.request_validator("POST", "/v1/chat/completions")
    completion = contract.request_validator("POST", "/v1/completions")
    basis = {"model": "fake", "max_tokens": 4}
    passed = [
        fields for fields, _ in BAD_CHAT_FIELDS if chat.is_valid({**basis, "messages": HI, **fields})
    ] + [
        fields
        for fields, _ in BAD_COMPLETION_FIELDS
        if completion.is_valid({**basis, "prompt": [4], **fields})
    ]
    assert passed == NO_MATTER_OF_SCHEMA


def test_every_alternative_says_something(document: dict[str, Any]) -> None:
    """Generators of clients give an alternative without a type no name."""
    for schema in nodes(document["components"]["schemas"]):
        assert {} not in schema.get("anyOf", ()), schema
        properties = schema.get("properties", {})
        # Rules between fields, which generators do not see, may say that a field is null.
        if "type" in schema and isinstance(properties, dict):
            for inner in properties.values():
                kinds = [each.get("type") for each in inner.get("anyOf", [inner])]
                assert set(kinds) != {"null"}, schema


def test_schemas_have_names_of_their_own(document: dict[str, Any]) -> None:
    """Two types with the same name would put our module paths into clients' code."""
    assert not [name for name in document["components"]["schemas"] if "__" in name]


def test_each_field_has_its_rule(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for operation in ROUTES.values():
        for form in operation.forms:
            schema = schemas[form.fields.__name__]
            patterns = schema.get("patternProperties", {})
            assert {*schema["properties"], *(pattern.strip("^$") for pattern in patterns)} == set(form.rules)
            assert schema["additionalProperties"] is False
            for name, rule in form.rules.items():
                if rule.treatment is Treatment.REFUSED:
                    written = patterns[f"^{name}$"]
                    assert written["enum"] == [None, *rule.neutral]
                    assert rule.reason in written["description"]


def test_statuses(document: dict[str, Any]) -> None:
    chat = set(document["paths"]["/v1/chat/completions"]["post"]["responses"])
    assert chat == {"200", *["400", "401", "403", "404", "408", "413", "415", "429", "431", "500", "503"]}
    # Every body counts in the bytes that are prepared at the same time.
    assert "429" in document["paths"]["/tokenize"]["post"]["responses"]
    assert "429" not in document["paths"]["/v1/models"]["get"]["responses"]
    assert "401" not in document["paths"]["/readiness"]["get"]["responses"]
    assert "503" in document["paths"]["/readiness"]["get"]["responses"]


def test_config_decides(tmp_path: Any) -> None:
    document = openapi_document(
        ServerConfig(unknown_fields="ignore", max_n=3, metrics=False, api_keys_file=tmp_path / "keys"),
        ModelTable(["fake"]),
        ROUTES,
    )
    schemas = document["components"]["schemas"]
    assert schemas["ChatFields"]["additionalProperties"] is True
    assert schemas["Tool"]["additionalProperties"] is True
    assert schemas["ErrorBody"]["additionalProperties"] is False
    assert schemas["CompletionFields"]["properties"]["n"]["maximum"] == 3
    assert "/metrics" not in document["paths"]
    assert document["security"] == [{"key": []}, {"x_api_key": []}]
    public = {
        path for path, methods in document["paths"].items() if methods.get("get", {}).get("security") == []
    }
    assert public == PUBLIC_PATHS


def test_the_models_are_named() -> None:
    one, two = (openapi_document(ServerConfig(), ModelTable(names), ROUTES) for names in (["a"], ["a", "b"]))
    assert one["components"]["schemas"]["ChatFields"]["properties"]["model"] == {
        "type": "string",
        "enum": ["a"],
    }
    for document, may_be_missing in ((one, True), (two, False)):
        tokenize = document["components"]["schemas"]["TokenizeText"]
        assert ("model" not in tokenize["required"]) is may_be_missing
        assert ({"type": "null"} in tokenize["properties"]["model"].get("anyOf", [])) is may_be_missing
        (parameter,) = document["paths"]["/tokenizer_info"]["get"]["parameters"]
        assert parameter["required"] is not may_be_missing
    (parameter,) = two["paths"]["/v1/models/{id}"]["get"]["parameters"]
    assert parameter["schema"] == {"enum": ["a", "b"]}


def test_the_models_limit_their_fields(server: RunningServer) -> None:
    """At each limit both the document and the route accept a value; beyond it both refuse it."""
    contract = Contract(ServerConfig(), server.models)
    (model,) = server.models.served_models
    room = model.max_model_len - 1
    for path, at, beyond in [
        ("/v1/completions", {"min_tokens": 0}, {"min_tokens": room + 1}),
        ("/v1/completions", {"prompt": [VOCAB_SIZE - 1]}, {"prompt": [VOCAB_SIZE]}),
        ("/v1/completions", {"prompt": [[VOCAB_SIZE - 1]]}, {"prompt": [[VOCAB_SIZE]]}),
        ("/v1/completions", {"prompt": [4] * room}, {"prompt": [4] * (room + 2)}),
        ("/v1/completions", {"stop_token_ids": [VOCAB_SIZE - 1]}, {"stop_token_ids": [VOCAB_SIZE]}),
        ("/v1/completions", {"logit_bias": {str(VOCAB_SIZE - 1): 1}}, {"logit_bias": {str(VOCAB_SIZE): 1}}),
        ("/v1/completions", {"logit_bias": {"5": 1}}, {"logit_bias": {"05": 1}}),
        ("/v1/embeddings", {"input": [VOCAB_SIZE - 1]}, {"input": [VOCAB_SIZE]}),
        ("/v1/embeddings", {"dimensions": EMBEDDING_SIZE}, {"dimensions": EMBEDDING_SIZE + 1}),
        ("/detokenize", {"tokens": [259]}, {"tokens": [260]}),
    ]:
        for fields, status in ((at, 200), (beyond, 400)):
            body = {**BODIES[path][0], **fields}
            assert contract.request_validator("POST", path).is_valid(body) == (status == 200)
            response = server.http.post(path, json=body)
            assert response.status_code == status, response.text


@pytest.mark.parametrize("limit", [1, 2, 10, 11, 100, 101, 258, 304, 1000, 1999])
def test_numbers_below(limit: int) -> None:
    pattern = re.compile(numbers_below(limit))
    assert [number for number in range(2500) if pattern.search(str(number))] == list(range(limit))
    assert not pattern.search("00")
    assert not pattern.search("01")


def test_reasoning_effort_is_for_templates_that_read_it(tokenizer: Tokenizer) -> None:
    """`test_template_kwargs` tests that the route refuses it if the template does not read it."""
    for template, is_read in (("{{ messages }}", False), ("{{ messages }}{{ reasoning_effort }}", True)):
        models = ModelTable(["fake"])
        models.serve(served_model(FakeEngine(), tokenizer, chat_template=template))
        contract = Contract(ServerConfig(), models)
        for path, fields in [
            ("/v1/chat/completions", {"reasoning_effort": "low"}),
            ("/v1/responses", {"reasoning": {"effort": "low"}}),
            ("/v1/messages", {"output_config": {"effort": "low"}}),
        ]:
            body = {**BODIES[path][0], **fields}
            assert contract.request_validator("POST", path).is_valid(body) is is_read


def test_no_effort_is_a_word_of_openais_routes(server: RunningServer) -> None:
    """`scripts/fuzz` found that the document allowed it in messages, whose route knows no such effort."""
    contract = Contract(ServerConfig(), server.models)
    effort = {"effort": "none"}
    for path, fields, is_valid in (
        ("/v1/chat/completions", {"messages": HI, "reasoning_effort": "none"}, True),
        ("/v1/responses", {"input": "hi", "reasoning": effort}, True),
        ("/v1/messages", {"messages": HI, "max_tokens": 4, "output_config": effort}, False),
    ):
        body = {"model": "fake", **fields}
        assert contract.request_validator("POST", path).is_valid(body) == is_valid
        assert (server.http.post(path, json=body).status_code == 200) == is_valid


@pytest.mark.parametrize("length", [-2, 0, 2**31])
def test_lengths_that_embeddings_are_not_cut_to(server: RunningServer, length: int) -> None:
    validator = Contract(ServerConfig(), server.models).request_validator("POST", "/v1/embeddings")
    body = {"model": "fake", "input": "a"}
    assert validator.is_valid({**body, "truncate_prompt_tokens": -1})
    assert not validator.is_valid({**body, "truncate_prompt_tokens": length})


def test_images_are_for_models_that_take_them(server: RunningServer) -> None:
    """No model on this server takes images; one that is still loading might."""
    loading = ModelTable(["fake", "loads"])
    loading.serve(server.models.served_models[0])
    for path, part in [
        ("/v1/chat/completions", {"type": "image", "image": "data:,"}),
        ("/v1/responses", {"type": "input_image", "image_url": "data:,"}),
        ("/v1/messages", {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}),
    ]:
        field = "input" if path == "/v1/responses" else "messages"
        body = {**BODIES[path][0], field: [{"role": "user", "content": [part]}]}
        for models, is_valid in ((server.models, False), (loading, True)):
            contract = Contract(ServerConfig(), models)
            assert contract.request_validator("POST", path).is_valid(body) is is_valid
        assert server.http.post(path, json=body).status_code == 400


def test_a_model_that_loads_limits_nothing(server: RunningServer) -> None:
    models = ModelTable(["fake", "loads"])
    models.serve(server.models.served_models[0])
    schema = openapi_document(ServerConfig(), models, ROUTES)["components"]["schemas"]["CompletionFields"]
    assert schema["properties"]["min_tokens"]["anyOf"][0]["maximum"] == 2**31 - 1


def test_the_server_gives_the_document_of_its_config(start: Start) -> None:
    with start(max_n=2, unknown_fields="ignore") as server:
        given = server.http.get("/openapi.json").json()
        assert given == openapi_document(
            ServerConfig(port=0, max_n=2, unknown_fields="ignore"), server.models, ROUTES
        )


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/v1/chat/completions", {"mood": "good"}),
        ("/v1/chat/completions", {"usage": None}),
        ("/v1/completions", {"object": "completion"}),
        ("/v1/completions", {"choices": [{"index": 0}]}),
        ("/tokenize", {"tokens": ["a"]}),
    ],
)
def test_the_contract_can_be_broken(server: RunningServer, path: str, change: dict[str, Any]) -> None:
    given = next(body for _, known, body in SUCCESSES if known == path)
    response = server.http.post(path, json={"model": "fake", **given})
    contract = Contract(ServerConfig(), ModelTable(["fake"]))
    contract.check(response)
    broken = httpx.Response(200, json={**response.json(), **change}, request=response.request)
    with pytest.raises(jsonschema_rs.ValidationError):
        contract.check(broken)


def test_the_contract_sees_statuses_events_and_requests(server: RunningServer) -> None:
    contract = Contract(ServerConfig(), ModelTable(["fake"]))
    whole = server.complete()
    undeclared = httpx.Response(418, json=whole.json(), request=whole.request)
    with pytest.raises(AssertionError):
        contract.check(undeclared)
    streamed = server.complete(stream=True)
    text = streamed.text.replace("text_completion", "completion")
    broken = httpx.Response(200, text=text, headers=streamed.headers, request=streamed.request)
    with pytest.raises(jsonschema_rs.ValidationError):
        contract.check(broken)
    body = {**json.loads(whole.request.content), "temperature": 3}
    request = httpx.Request("POST", whole.request.url, json=copy.deepcopy(body))
    with pytest.raises(jsonschema_rs.ValidationError):
        contract.check(httpx.Response(200, json=whole.json(), request=request))


VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, 1, 2, -1, 1.0, 0.5, 1e300, 10**30, 2**64, "", "a", "text", "<s>"]),
    st.sampled_from([[], [4], [4, 300], ["a"], [[4], "b"], {}, {"5": 1}, {"x": 1}, {"type": "text"}, HI]),
    st.sampled_from(
        [{"include_usage": True}, [{"type": "text", "text": "a"}], ["text"], [None], "\U0001f600"]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers(-3, 300) | st.floats(-3, 3) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)


@pytest.mark.parametrize(
    ("path", "form"),
    [(path, i) for path, bodies in BODIES.items() for i in range(len(bodies))],
)
# `scripts/fuzz` sends ten thousand bodies.
@examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_body_gets_an_answer_of_the_contract(
    server: RunningServer, path: str, form: int, data: st.DataObject
) -> None:
    """`server.http` checks the answer, and that the document allows each body that the route accepts."""
    rules = ROUTES["POST", path].forms[form].rules
    changes = data.draw(st.dictionaries(st.sampled_from([*rules, "mood"]), VALUES, max_size=3))
    body = {**BODIES[path][form], **changes}
    response = server.http.post(path, json=body)
    assert response.status_code in (200, 400, 404), response.text
