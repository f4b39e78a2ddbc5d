"""What schemas say about themselves is dropped, wherever a schema may be; what never ends is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from typing import Any

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from refusals import assert_refused
from running_server import RunningServer
from tool_requests import follows, function

from vinfer.errors import RequestError
from vinfer.server.constrain.annotations import LISTS, MAPS, SINGLE, without_annotations
from vinfer.server.constrain.endless import check_ends

TEXT = {"type": "string"}
OBJECT: dict[str, Any] = {"type": "object", "properties": {"a": TEXT}, "required": ["a"]}
NOISE: dict[str, Any] = {
    "$schema": "nowhere",
    "$comment": "x",
    "title": "x",
    "examples": [1],
    "default": {},
    "deprecated": True,
    "readOnly": True,
    "x-order": 1,
    "x-guidance": {"lenient": True},
}
# What zod, pydantic and OpenAPI generators write.
WRITTEN_BY_GENERATORS: list[dict[str, Any]] = [
    {**OBJECT, **NOISE},
    {**OBJECT, "$id": "https://example.org/schema"},
    {**OBJECT, "propertyNames": TEXT},
    {**OBJECT, "properties": {"a": {**TEXT, "format": "password"}}},
    {**OBJECT, "properties": {"a": {"anyOf": [{**TEXT, "format": "file-path"}, {"type": "null"}]}}},
    {**OBJECT, "propertyNames": {}},
    {**OBJECT, "properties": {"a": {**TEXT, **NOISE}}},
    {"type": "object", "properties": {"a": {"anyOf": [{**TEXT, **NOISE}, {"type": "null"}]}}},
    {"type": "object", "properties": {"title": TEXT, "x-y": TEXT, "$schema": TEXT}, "required": ["x-y"]},
    {"type": "object", "additionalProperties": TEXT, "propertyNames": TEXT},
    {"type": "object", "additionalProperties": TEXT, "propertyNames": {"enum": ["a", "b"], **TEXT}},
    {"type": "object", "additionalProperties": TEXT, "propertyNames": {"pattern": "^[ab]$"}},
]


@pytest.mark.parametrize("schema", WRITTEN_BY_GENERATORS)
def test_schemas_of_generators_are_enforced(server: RunningServer, schema: dict[str, Any]) -> None:
    formatted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tools = [function("f", {"type": "object", **schema})]
    for fields in (
        {"response_format": formatted},
        {"structured_outputs": {"json": schema}},
        {"tools": tools, "tool_choice": "required"},
    ):
        server.engine.reset()
        response = server.chat(**fields)
        is_too_long = response.status_code == 400 and "max_model_len" in response.text
        assert response.status_code == 200 or is_too_long, response.text
    assert server.http.post("/v1/completions", json={
        "model": "fake", "prompt": [4], "max_tokens": 1, "structured_outputs": {"json": schema}
    }).status_code == 200  # fmt: skip
    request = server.engine.requests[-1]
    key = "x-y" if "x-y" in str(schema) else "a"
    assert follows(request, json.dumps({key: "b"}))


@pytest.mark.parametrize(
    ("names", "good", "bad"),
    [({"enum": ["a", "b"]}, "b", "c"), ({"pattern": "^[ab]$"}, "b", "c"), ({"pattern": "^x"}, "xy", "y")],
)
def test_names_are_enforced(server: RunningServer, names: dict[str, Any], good: str, bad: str) -> None:
    schema = {"type": "object", "additionalProperties": TEXT, "propertyNames": names}
    assert server.chat(structured_outputs={"json": schema}).status_code == 200
    assert follows(server.engine.requests[-1], json.dumps({good: "v"}))
    assert server.chat(structured_outputs={"json": schema}).status_code == 200
    assert not follows(server.engine.requests[-1], json.dumps({bad: "v"}))


@pytest.mark.parametrize("names", [{"maxLength": 3}, {"pattern": "a", "enum": ["a"]}, {"not": TEXT}, False])
def test_other_names_are_refused(server: RunningServer, names: Any) -> None:
    schema = {**OBJECT, "propertyNames": names}
    assert_refused(
        server.chat(structured_outputs={"json": schema}), "structured_outputs.json", "propertyNames"
    )


def nested_everywhere(inner: dict[str, Any]) -> dict[str, Any]:
    """Return a schema with another one at every place where a schema may be."""
    whole: dict[str, Any] = {name: {"title": inner} for name in MAPS}
    whole |= {name: [inner] for name in LISTS} | dict.fromkeys(SINGLE, inner)
    return whole


def test_annotations_are_dropped_everywhere_and_names_are_kept() -> None:
    found = without_annotations(nested_everywhere({**TEXT, **NOISE}))
    expected = nested_everywhere(TEXT)
    assert found.pop("propertyNames", None) in (None, TEXT)
    expected.pop("propertyNames")
    assert found == expected
    literals = {"const": {"title": 1}, "enum": [{"x-a": 1}]}
    assert without_annotations(literals) == literals


def test_an_id_that_is_used_stays() -> None:
    schema = {
        "$id": "https://a/b",
        "$defs": {"c": TEXT},
        "properties": {"d": {"$ref": "https://a/b#/$defs/c"}},
    }
    assert without_annotations(schema) == schema
    local = {"$id": "https://a/b", "$defs": {"c": TEXT}, "properties": {"d": {"$ref": "#/$defs/c"}}}
    assert without_annotations(local) == {key: local[key] for key in ("$defs", "properties")}


PARTS = st.recursive(
    st.sampled_from([TEXT, {"type": "integer"}, {"type": "null"}, {"enum": ["a", 1]}, {}]),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.dictionaries(st.sampled_from(["a", "title", "x-b"]), inner, max_size=2),
                "required": st.lists(st.sampled_from(["a", "title"]), max_size=1),
            }
        ),
        st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "additionalProperties": inner,
                "propertyNames": st.sampled_from([TEXT, {"enum": ["a", "title"]}, {"pattern": "^a"}, True]),
            }
        ),
    ),
    max_leaves=6,
)
VALUES = st.recursive(
    st.sampled_from([None, 1, "a", "b"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["a", "title", "x-b", "ab"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@examples(300)
@given(schema=PARTS, value=VALUES, noise=st.sampled_from(sorted(NOISE)))
def test_the_same_values_are_allowed(schema: dict[str, Any], value: Any, noise: str) -> None:
    noisy = {**schema, noise: NOISE[noise]}
    before = copy.deepcopy(noisy)
    plain = without_annotations(noisy)
    assert noisy == before
    assert Draft202012Validator(schema).is_valid(value) == Draft202012Validator(plain).is_valid(value)


def holds(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name]}


ITSELF = {"$ref": "#"}
TREE = {"$ref": "#/$defs/tree"}
ENDLESS: list[dict[str, Any]] = [
    ITSELF,
    {"anyOf": [ITSELF]},
    {"allOf": [TEXT, ITSELF]},
    holds("a", ITSELF),
    {"type": "array", "items": ITSELF, "minItems": 1},
    {"type": "array", "prefixItems": [ITSELF], "minItems": 1},
    {"$defs": {"tree": holds("a", TREE)}, "$ref": "#/$defs/tree"},
    {"$defs": {"tree": holds("a", {"anyOf": [TREE, holds("b", TREE)]})}, **holds("c", TREE)},
    {"$defs": {"a~/b": {"$ref": "#/$defs/a~0~1b"}}, **holds("c", {"$ref": "#/$defs/a~0~1b"})},
]
FINITE: list[dict[str, Any]] = [
    {},
    {"$ref": "https://elsewhere"},
    {"$ref": "#/nowhere"},
    {"type": "object", "properties": {"a": ITSELF}},
    holds("a", {"anyOf": [ITSELF, {"type": "null"}]}),
    holds("a", {"type": "array", "items": ITSELF}),
    {"type": ["object", "null"], "properties": {"a": ITSELF}, "required": ["a"]},
    {"$defs": {"tree": holds("a", {"anyOf": [TREE, TEXT]})}, "$ref": "#/$defs/tree"},
    {"$defs": {"tree": TEXT, "b": holds("a", TREE)}, **holds("c", {"$ref": "#/$defs/b"})},
]


@pytest.mark.parametrize("schema", ENDLESS)
def test_what_never_ends_is_refused(server: RunningServer, schema: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="never ends"):
        check_ends(schema, "x")
    path = "structured_outputs.json"
    assert_refused(server.chat(structured_outputs={"json": schema}), path, "never ends")


@pytest.mark.parametrize("schema", FINITE)
def test_what_may_end_is_not(schema: dict[str, Any]) -> None:
    check_ends(schema, "x")


def test_a_schema_that_is_written_to_take_long_does_not() -> None:
    """Each definition ends only if the next one does, and the last is found first."""
    num = 1500
    names = [f"{i:04}" for i in range(num)]
    chain = {name: holds("a", {"$ref": f"#/$defs/{names[(i + 1) % num]}"}) for i, name in enumerate(names)}
    for schema in (
        {"$defs": chain, "$ref": "#/$defs/0000"},
        {"$defs": {**chain, names[-1]: TEXT}, "$ref": "#/$defs/0000"},
    ):
        started = time.thread_time()
        with contextlib.suppress(RequestError):
            check_ends(schema, "x")
        without_annotations(schema)
        assert time.thread_time() - started < 2


def test_a_tool_that_never_ends_is_named(server: RunningServer) -> None:
    tools = [function("f"), function("g", holds("a", ITSELF))]
    response = server.chat(tools=tools, tool_choice="required")
    assert_refused(response, "tools[1].function.parameters", "never ends")
