"""A misspelled keyword of a schema is refused, because it would silently not be enforced."""

from __future__ import annotations

import re
from typing import Any

import pytest
from refusals import assert_refused
from running_server import RunningServer
from tool_requests import function

from vinfer.errors import RequestError
from vinfer.server.constrain.annotations import LISTS, MAPS, SAY_NOTHING, SINGLE
from vinfer.server.constrain.schema_checks import check_schema

LONG = [
    "properties",
    "required",
    "items",
    "anyOf",
    "additionalProperties",
    "minLength",
    "maxItems",
    "pattern",
]
TEXT = {"type": "string"}


def in_snake_case(keyword: str) -> str:
    return re.sub("([A-Z])", lambda letter: f"_{letter[0].lower()}", keyword)


@pytest.mark.parametrize("keyword", LONG)
def test_misspelled_keywords(keyword: str) -> None:
    swapped = keyword[:2] + keyword[3] + keyword[2] + keyword[4:]
    for wrong in {keyword[:-1], f"{keyword}s", swapped, keyword.upper(), in_snake_case(keyword)} - {keyword}:
        with pytest.raises(RequestError, match=f"which is not a keyword: did you mean {keyword}"):
            check_schema({"type": "object", wrong: []}, "schema")


@pytest.mark.parametrize("key", [*MAPS, *LISTS, *SINGLE])
def test_wherever_a_schema_may_be(key: str) -> None:
    part: Any = {"minLenght": 3, **TEXT}
    value = {"a": part} if key in MAPS else part if key in SINGLE else [part]
    with pytest.raises(RequestError, match="minLenght"):
        check_schema({key: value}, "schema")


def test_names_and_values_are_no_keywords() -> None:
    odd = {"propertis": 1, "requird": [], "min_length": 3}
    check_schema({"type": "object", "properties": {"tpye": TEXT, "enums": TEXT}}, "schema")
    check_schema({"const": odd, "enum": [odd], "default": odd, "examples": [odd]}, "schema")


def test_other_keys_say_nothing() -> None:
    """JSON Schema allows them, and generators of schemas write many."""
    others = ["abc", "x-enum", "nullable", "discriminator", "optional", "propertyOrdering", "contentEncoding"]
    check_schema({key: {} for key in (*SAY_NOTHING, "description", *others)}, "schema")


def test_on_every_way_to_a_constrained_answer(server: RunningServer) -> None:
    schema = {"type": "object", "propertys": {"a": TEXT}, "requird": ["a"]}
    formatted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    strict = function("f", schema)
    strict["function"]["strict"] = True
    words = "did you mean properties?"
    path = "response_format.json_schema.schema"
    assert_refused(server.chat(response_format=formatted), path, words)
    assert_refused(server.chat(structured_outputs={"json": schema}), "structured_outputs.json", words)
    path = "tools[0].function.parameters"
    assert_refused(server.chat(tools=[strict]), path, words)
    assert_refused(server.chat(tools=[function("f", schema)], tool_choice="required"), path, words)
