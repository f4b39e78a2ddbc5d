"""Objects that list their properties are closed, values of any length get a limit, nothing else changes."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from tiny.schemas import random_schema

from vinfer.server.constrain.json_schema import MAX_INTEGER, SMALLEST_FRACTION, closed

TEXT: dict[str, Any] = {"type": "string"}


def listed(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": TEXT}, **more}


CLOSED = listed(additionalProperties=False)

WIDE = {"type": "integer", "minimum": -MAX_INTEGER, "maximum": MAX_INTEGER}
FRACTION = {**WIDE, "multipleOf": SMALLEST_FRACTION}
INTEGER = {"$ref": "#/$defs/number-of-64-bits-0"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "listed": (listed(), CLOSED),
    "listed and required": (listed(required=["a"]), {**CLOSED, "required": ["a"]}),
    "in items": ({"items": listed()}, {"items": CLOSED}),
    "in prefixItems": ({"prefixItems": [listed(), TEXT]}, {"prefixItems": [CLOSED, TEXT]}),
    "in a property": (
        {"properties": {"properties": listed()}},
        {"properties": {"properties": CLOSED}, "additionalProperties": False},
    ),
    "in definitions": (
        {"$ref": "#/$defs/x", "$defs": {"x": listed()}},
        {"$ref": "#/$defs/x", "$defs": {"x": CLOSED}},
    ),
    "in anyOf": ({"anyOf": [listed(), TEXT]}, {"anyOf": [CLOSED, TEXT]}),
    "an integer": ({"type": "integer"}, {**INTEGER, "$defs": {"number-of-64-bits-0": WIDE}}),
    "integers, some alike": (
        {
            "$defs": {"x": TEXT},
            "prefixItems": [
                {"type": "integer", "title": "Age", "default": 3},
                {"type": ["integer", "null"], "exclusiveMinimum": 0},
                {"type": "integer", "format": "int64"},
                {"type": "integer", "maximum": 10},
            ],
        },
        {
            "prefixItems": [{"$ref": f"#/$defs/number-of-64-bits-{i}"} for i in (0, 1, 0, 2)],
            "$defs": {
                "x": TEXT,
                "number-of-64-bits-0": WIDE,
                "number-of-64-bits-1": {
                    "type": ["integer", "null"],
                    "exclusiveMinimum": 0,
                    "maximum": MAX_INTEGER,
                },
                "number-of-64-bits-2": {"type": "integer", "maximum": 10, "minimum": -MAX_INTEGER},
            },
        },
    ),
    "numbers, with fractions or perhaps": (
        {"prefixItems": [{"type": "number"}, {"type": ["integer", "number"], "title": "x"}]},
        {
            "prefixItems": [{"$ref": f"#/$defs/number-of-64-bits-{i}"} for i in (0, 1)],
            "$defs": {
                "number-of-64-bits-0": {**WIDE, "type": "number", "multipleOf": SMALLEST_FRACTION},
                "number-of-64-bits-1": {
                    **WIDE,
                    "type": ["integer", "number"],
                    "multipleOf": SMALLEST_FRACTION,
                },
            },
        },
    ),
    "a number from nothing to one": (
        {"items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}},
        {
            "items": {
                "type": "number",
                "exclusiveMinimum": 0,
                "maximum": 1,
                "multipleOf": SMALLEST_FRACTION,
            }
        },
    ),
    "an integer where references resolve otherwise": (
        {"items": {"$id": "x", "items": {"type": "integer"}}},
        {"items": {"$id": "x", "items": WIDE}},
    ),
    "an integer, and a name that is taken": (
        {"items": {"type": "integer"}, "$defs": {"number-of-64-bits-0": TEXT}},
        {"items": WIDE, "$defs": {"number-of-64-bits-0": TEXT}},
    ),
    "an integer, and what is not enforced": (
        {"type": "integer", "uniqueItems": True},
        {**WIDE, "uniqueItems": True},
    ),
    "a form of text": (
        {"type": "string", "format": "date-time"},
        {"type": "string", "format": "date-time", "maxLength": 35},
    ),
    "forms of text whose beginning has no end": (
        {"prefixItems": [{"type": "string", "format": "uri"}, {"type": "string", "format": "email"}]},
        {
            "prefixItems": [
                {"type": "string", "format": "uri", "maxLength": 2048, "pattern": "^[^:]{1,15}:"},
                {"type": "string", "format": "email", "maxLength": 254, "pattern": "^[^@]{1,64}@"},
            ]
        },
    ),
    "a form of pydantic's": (
        {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
        {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083, "pattern": "^[^:]{1,15}:"},
    ),
    "what stands beside a part that composes": (
        {"properties": {"a": {"oneOf": [listed(), {"required": ["b"]}]}, "b": listed()}},
        {
            "properties": {"a": {"oneOf": [listed(), {"required": ["b"]}]}, "b": CLOSED},
            "additionalProperties": False,
        },
    ),
    "what a part that composes is in": (
        {"items": listed(properties={"a": {"not": listed()}})},
        {"items": listed(properties={"a": {"not": listed()}}, additionalProperties=False)},
    ),
    "items that need not differ": (
        {"type": "array", "items": TEXT, "uniqueItems": False},
        {"type": "array", "items": TEXT},
    ),
    "values of a map": (
        {"type": "object", "additionalProperties": listed()},
        {"type": "object", "additionalProperties": CLOSED},
    ),
}

KEPT: dict[str, dict[str, Any]] = {
    "no properties": {"type": "object"},
    "open by its own word": listed(additionalProperties=True),
    "others have a type": listed(additionalProperties=TEXT),
    "patterns": listed(patternProperties={"^x": TEXT}),
    "more required than listed": listed(required=["a", "b"]),
    "more wanted than listed": listed(minProperties=2),
    "a number in a narrow place": {"type": "number", "minimum": 0, "maximum": 1e-6},
    "a number larger than 64 bits": {"type": "number", "minimum": 1e30},
    "a number of steps": {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 1e-12},
    "larger than 64 bits": {"type": "integer", "minimum": 10**30, "maximum": 10**31},
    "an integer of values": {"type": "integer", "enum": [10**30]},
    "a form with an end": {"type": "string", "format": "uuid"},
    "a form with a length": {"type": "string", "format": "hostname", "maxLength": 500},
    "a form longer than its longest": {"type": "string", "format": "email", "minLength": 255},
    "a form with a pattern": {"type": "string", "format": "uri", "pattern": "^https:"},
    "a form of values": {"type": "string", "format": "uri", "const": "a-scheme-longer-than-15:"},
    "all of": {"allOf": [listed(), {"properties": {"b": TEXT}}]},
    "exactly one of": {"oneOf": [listed(), {"properties": {"b": TEXT}, "required": ["b"]}]},
    "not": {"not": listed(), "properties": {"a": listed()}},
    "a part that composes and refers": {
        "properties": {"a": {"oneOf": [{"$ref": "#/$defs/x"}, TEXT]}, "b": listed()},
        "$defs": {"x": listed()},
    },
    "parts of a part that composes and refers": {
        "properties": {"a": {"if": listed(), "then": {"items": [{"$ref": "#"}]}}},
    },
    "contains": {"type": "array", "contains": listed(), "maxContains": 1},
    "a reference beside": {"$ref": "#/$defs/x", "properties": {"b": TEXT}, "$defs": {"x": listed()}},
    "a choice beside": listed(anyOf=[{"required": ["a"]}, {"properties": {"b": TEXT}}]),
    "an example, not a schema": {"const": listed(), "enum": [listed()]},
    "nonsense": {"properties": 3, "required": "a", "items": [3], "anyOf": {"a": listed()}},
}


@pytest.mark.parametrize("case", CASES)
def test_closed(case: str) -> None:
    schema, expected = CASES[case]
    assert closed(schema) == expected


@pytest.mark.parametrize("case", KEPT)
def test_kept(case: str) -> None:
    assert closed(KEPT[case]) == KEPT[case]


def opened(schema: dict[str, Any]) -> dict[str, Any]:
    """Open every object to other properties."""

    def without(part: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in part.items() if key != "additionalProperties"}

    result: dict[str, Any] = json.loads(json.dumps(schema), object_hook=without)
    return result


def test_what_satisfies_the_closed_schema_satisfies_the_open_one() -> None:
    """Checked with objects that have an extra property, which is what the closed schema refuses."""
    draw = random.Random(3)
    num_refused = 0
    for _ in range(200):
        schema = opened(random_schema(draw))
        validator, closed_validator = (
            jsonschema.Draft202012Validator(form) for form in (schema, closed(schema))
        )
        for value in ({}, {"a": 1}, {"zz": 1}, [], [{"zz": 2}], "x", 3, None):
            is_valid, is_valid_closed = validator.is_valid(value), closed_validator.is_valid(value)
            assert is_valid or not is_valid_closed
            num_refused += is_valid and not is_valid_closed
    assert num_refused
