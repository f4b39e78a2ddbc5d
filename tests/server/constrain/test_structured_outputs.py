"""`response_format` and `structured_outputs` over HTTP: what they send to the engine, and every refusal."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from fake_engine import IM_END, ids_of
from running_server import RunningServer, events, wait_until
from tool_requests import follows

from vinfer.engine.grammar import GrammarSpec
from vinfer.errors import RequestError
from vinfer.server.constrain.grammars import MAX_SCHEMA_CHARS, grammar_spec
from vinfer.server.fields.structured_outputs import (
    MAX_CHOICES,
    MAX_GRAMMAR_CHARS,
    StructuredOutputs,
)

PROPERTIES = {"b": {"type": "integer"}, "a": {"enum": ["x", "y"]}}
SCHEMA = {
    "type": "object",
    "properties": PROPERTIES,
    "required": ["b", "a"],
    "additionalProperties": False,
}


def json_schema(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **fields}}


FORMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "json_object": ({"response_format": {"type": "json_object"}}, '{"any": [1, null]}', "[1]"),
    "json_schema": ({"response_format": json_schema(SCHEMA)}, '{"b": 12, "a": "y"}', '{"a": "y", "b": 12}'),
    "strict": ({"response_format": json_schema(SCHEMA, strict=True)}, '{"b": 1, "a": "x"}', '{"b": 1}'),
    "not strict": (
        {"response_format": json_schema(SCHEMA, strict=False, description="of people")},
        '{"b": 1, "a": "x"}',
        '{"b": 1}',
    ),
    "one line": ({"response_format": json_schema(SCHEMA)}, '{"b": 12, "a": "y"}', '{"b":12,"a":"y"}'),
    "json": ({"structured_outputs": {"json": SCHEMA}}, '{"b": 12, "a": "y"}', '{"b": 12, "a": "z"}'),
    "choice": ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "n"),
    "regex": ({"structured_outputs": {"regex": "[0-9]{3}"}}, "123", "12"),
    "grammar": ({"structured_outputs": {"grammar": 'start: "a" start | "b"'}}, "aab", "aa"),
}


@pytest.mark.parametrize("route", ["chat", "complete"])
@pytest.mark.parametrize("name", FORMS)
def test_an_answer_is_constrained(server: RunningServer, name: str, route: str) -> None:
    fields, good, bad = FORMS[name]
    for text, expected in ((good, True), (bad, False)):
        server.engine.reset()
        assert getattr(server, route)(**fields).status_code == 200
        (request,) = server.engine.requests
        assert follows(request, text) is expected


def test_text_and_null_bind_nothing(server: RunningServer) -> None:
    for fields in ({}, {"response_format": {"type": "text"}}, {"structured_outputs": None}):
        assert server.chat(**fields).status_code == 200
    assert [request.grammar for request in server.engine.requests] == [None] * 3


def test_each_choice_and_each_prompt_has_its_own_place_in_the_grammar(server: RunningServer) -> None:
    body = {"prompt": [[4], [5]], "n": 2, "structured_outputs": {"choice": ["aa", "ab"]}}
    assert server.complete(**body).status_code == 200
    requests = server.engine.requests
    assert len(requests) == 4
    assert requests[0].grammar is not None
    requests[0].grammar.advance(ids_of("a"))
    assert all(follows(request, "ab") for request in requests[1:])


def test_min_tokens_is_the_grammar_s_matter(server: RunningServer) -> None:
    fields = {"min_tokens": 2, "structured_outputs": {"regex": "a{1,3}"}}
    assert server.chat(**fields).status_code == 200
    (request,) = server.engine.requests
    assert request.params.min_tokens == 2
    assert not follows(request, "a")
    server.chat(**fields)
    assert follows(server.engine.requests[1], "aa")


def test_a_constrained_answer_is_streamed_and_ends_with_stop(server: RunningServer) -> None:
    server.engine.script = [*ids_of("no"), IM_END]
    fields = {"structured_outputs": {"choice": ["yes", "no"]}}
    chunks = events(server.chat(**fields, stream=True).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "no"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    choice = server.chat(**fields).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("no", "stop")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


def outputs(**fields: Any) -> dict[str, Any]:
    return {"structured_outputs": fields}


SCHEMA_PATH = "response_format.json_schema.schema"

BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"response_format": {}}, "response_format.type", "is missing"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "must be 'text', 'json_object' or"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
    (
        {"response_format": {"type": "text", "json_schema": {"name": "a", "schema": {}}}},
        "response_format.json_schema",
        "needs type json_schema",
    ),
    (
        {"response_format": {"type": "json_object", "schema": {}}},
        "response_format.schema",
        "use type json_schema",
    ),
    ({"response_format": json_schema(None)}, SCHEMA_PATH, "is missing"),
    ({"response_format": json_schema("{}")}, SCHEMA_PATH, "must be an object"),
    ({"response_format": json_schema({}, strict=1)}, "response_format.json_schema.strict", "boolean"),
    ({"response_format": json_schema({}, name="a b")}, "response_format.json_schema.name", "must match"),
    ({"response_format": json_schema({}, name="n" * 129)}, "response_format.json_schema.name", "must match"),
    ({"response_format": json_schema({"type": "strin"})}, SCHEMA_PATH, "strin is not a type of JSON"),
    ({"response_format": json_schema({"not": {}})}, SCHEMA_PATH, "does not support"),
    (
        {"response_format": json_schema({"oneOf": [{"type": "string"}, {"const": "a"}]})},
        SCHEMA_PATH,
        "one value might satisfy two branches of a oneOf",
    ),
    (
        {"response_format": json_schema({"$ref": "http://127.0.0.1:9/"})},
        SCHEMA_PATH,
        "only parts of the schema itself",
    ),
    # The body's own limit.
    ({"response_format": json_schema(nested(40))}, None, "nested deeper than 64 levels"),
    (outputs(), "structured_outputs", "has 0 of regex, choice, grammar and json: send one"),
    (outputs(regex="a", choice=["a"]), "structured_outputs", "has 2 of regex, choice, grammar and json"),
    (outputs(xml="a"), "structured_outputs.xml", "is not a known field"),
    (outputs(regex=3), "structured_outputs.regex", "must be a string"),
    (outputs(regex="("), "structured_outputs.regex", "unclosed group"),
    (outputs(regex="x" * (MAX_GRAMMAR_CHARS + 1)), "structured_outputs.regex", "must have at most 16384"),
    (outputs(choice=[]), "structured_outputs.choice", "must have at least 1"),
    (outputs(choice=["a"] * (MAX_CHOICES + 1)), "structured_outputs.choice", "must have at most 1000"),
    (outputs(choice=["x" * MAX_GRAMMAR_CHARS]), "structured_outputs.choice", "the limit is 16384"),
    (outputs(choice=["a", 3]), "structured_outputs.choice[1]", "must be a string"),
    (outputs(grammar="start: foo"), "structured_outputs.grammar", "unknown name"),
    (outputs(grammar="x" * (MAX_GRAMMAR_CHARS + 1)), "structured_outputs.grammar", "must have at most 16384"),
    (outputs(json={"type": "array", "uniqueItems": True}), "structured_outputs.json", "uniqueItems"),
    (outputs(json="{}"), "structured_outputs.json", "must be an object"),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        "exclude each other",
    ),
    (
        {"ignore_eos": True, "response_format": {"type": "json_object"}},
        "ignore_eos",
        "cannot be combined with",
    ),
    ({"ignore_eos": True, **outputs(regex="a")}, "ignore_eos", "cannot be combined with"),
]


@pytest.mark.parametrize(
    ("fields", "param", "words"), BAD, ids=[f"{param}-{i}" for i, (_, param, _) in enumerate(BAD)]
)
@pytest.mark.parametrize("route", ["chat", "complete"])
def test_a_bad_form_is_a_400_that_names_the_field(
    server: RunningServer, fields: dict[str, Any], param: str | None, words: str, route: str
) -> None:
    response = getattr(server, route)(**fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]
    assert server.engine.requests == []
    assert server.chat().status_code == 200


def test_hostile_schemas_keep_nobody_waiting(server: RunningServer) -> None:
    """Each takes a second of its own thread; requests that need no compile are answered meanwhile."""
    known = {"structured_outputs": {"choice": ["known"]}}
    assert server.chat(**known).status_code == 200
    statuses: list[int] = []

    def attack(salt: str) -> None:
        form = json_schema({"properties": {f"{salt}{i}": {} for i in range(2500)}})
        statuses.append(server.chat(response_format=form).status_code)

    threads = [threading.Thread(target=attack, args=(salt,)) for salt in "ab"]
    for thread in threads:
        thread.start()
    num_served = 0
    while any(thread.is_alive() for thread in threads):
        assert server.chat().status_code == 200
        assert server.chat(**known).status_code == 200
        num_served += 1
    for thread in threads:
        thread.join()
    assert num_served > 10
    assert set(statuses) <= {200, 400}


def test_a_schema_that_is_too_long_is_refused() -> None:
    """Tested without the shared server, which does not accept bodies that long."""

    def spec_of(num_chars: int) -> GrammarSpec | None:
        return grammar_spec(None, StructuredOutputs(json={"const": "x" * (num_chars - 12)}))

    longest = spec_of(MAX_SCHEMA_CHARS)
    assert longest is not None
    assert len(longest.text) == MAX_SCHEMA_CHARS
    with pytest.raises(RequestError, match="has 65537 characters as JSON; the limit is 65536") as caught:
        spec_of(MAX_SCHEMA_CHARS + 1)
    assert caught.value.param == "structured_outputs.json"


def test_a_grammar_that_fails_midway_is_an_error_of_its_field(server: RunningServer) -> None:
    server.engine.fail_after_tokens = 1
    server.engine.failure = RequestError(
        "structured_outputs.regex cannot be followed", param="structured_outputs.regex"
    )
    response = server.chat(structured_outputs={"regex": "[A-Z]*"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "structured_outputs.regex"


def test_a_client_that_leaves_a_constrained_stream_cancels_it(server: RunningServer) -> None:
    server.engine.seconds_per_event = 0.05
    body = {
        "model": "fake",
        "prompt": [4],
        "max_tokens": 100,
        "stream": True,
        "structured_outputs": {"regex": "[A-Z]*"},
    }
    with server.http.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    server.engine.wait_until_cancelled(1)
    wait_until(lambda: len(server.engine.cancelled) == 1)


def test_schemas_keep_the_order_of_their_properties(server: RunningServer) -> None:
    server.chat(response_format=json_schema(SCHEMA))
    reordered = {**SCHEMA, "properties": dict(reversed(PROPERTIES.items()))}
    assert json.dumps(reordered) != json.dumps(SCHEMA)
    server.chat(response_format=json_schema(reordered))
    first, second = server.engine.requests
    assert follows(first, '{"b": 1, "a": "x"}')
    assert follows(second, '{"a": "x", "b": 1}')
