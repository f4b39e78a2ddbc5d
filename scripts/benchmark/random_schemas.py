"""Random JSON Schemas, drawn by Hypothesis; a fixed seed gives the same schemas.

They nest three deep and use the keywords of OpenAI's structured outputs, plus const, oneOf, prefixItems,
uniqueItems and string lengths. Whether lengths have a limit is random. Knows no server.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

Schema = dict[str, Any]
Schemas = st.SearchStrategy[Schema]

DEPTH = 3
NAMES = [
    "id",
    "name",
    "title",
    "type",
    "value",
    "status",
    "date",
    "city",
    "country",
    "price",
    "count",
    "tags",
    "items",
    "address",
    "email",
    "phone",
    "age",
    "unit",
    "active",
    "kind",
    "notes",
    "color",
    "size",
    "weight",
    "url",
    "code",
    "level",
    "score",
    "label",
    "owner",
    "größe",
]
FORMATS = ("date", "time", "date-time", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "duration")
PATTERNS = (
    "^[A-Z]{2,3}$",
    "^\\d{4}-\\d{2}$",
    "^#[0-9a-f]{6}$",
    "[a-z]+",
    "^(low|high)$",
    "^\\+?[0-9 ]{3,15}$",
)
VALUES = ("red", "grün", 'a "b"', "new york", "", 0, 1, -2.5, 1000, True, False, None)


def draw_schemas(count: int, number: int) -> list[Schema]:
    """Draw `count` different schemas with this seed; each is valid under the 2020-12 metaschema."""
    drawn: dict[str, Schema] = {}

    @seed(number)
    @settings(
        max_examples=2 * count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_any(DEPTH))
    def collect(schema: Schema) -> None:
        if len(drawn) < count:
            drawn.setdefault(json.dumps(schema), schema)

    collect()
    for schema in drawn.values():
        Draft202012Validator.check_schema(schema)
    return list(drawn.values())


def _any(depth: int) -> Schemas:
    plain = [_string(), _number(), st.sampled_from([{"type": "boolean"}, {"type": "null"}]), _values()]
    if depth == 0:
        return st.one_of(plain)
    inner = _any(depth - 1)
    nested = [_object(inner), _object(inner), _object(inner), _array(inner), _tuple(inner), _choice(inner)]
    # Real schemas are nearly always objects.
    return st.one_of([_object(inner)] * 12 + nested + plain if depth == DEPTH else nested + plain)


def _bounds(least: str, most: str, values: st.SearchStrategy[int], widths: st.SearchStrategy[int]) -> Schemas:
    """Draw no limit, one or both; the upper limit is not below the lower one."""
    both = st.tuples(values, widths).map(lambda pair: {least: pair[0], most: pair[0] + pair[1]})
    return st.one_of(
        st.just({}), st.builds(lambda n: {least: n}, values), st.builds(lambda n: {most: n}, widths), both
    )


def _string() -> Schemas:
    lengths = _bounds("minLength", "maxLength", st.integers(0, 10), st.integers(0, 60))
    more = st.one_of(
        lengths,
        st.sampled_from(FORMATS).map(lambda name: {"format": name}),
        st.sampled_from(PATTERNS).map(lambda text: {"pattern": text}),
    )
    return more.map(lambda keywords: {"type": "string", **keywords})


def _number() -> Schemas:
    bounds = _bounds("minimum", "maximum", st.integers(-1000, 1000), st.integers(20, 1000))
    kinds = st.sampled_from([{"type": "integer"}, {"type": "number"}, {"type": "integer", "multipleOf": 5}])
    return st.builds(lambda kind, limits: {**kind, **limits}, kinds, bounds)


def _values() -> Schemas:
    several = st.lists(st.sampled_from(VALUES), min_size=1, max_size=6, unique_by=json.dumps)
    return st.one_of(several.map(lambda v: {"enum": v}), st.sampled_from(VALUES).map(lambda v: {"const": v}))


@st.composite
def _object(draw: st.DrawFn, inner: Schemas) -> Schema:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    schema: Schema = {"type": "object", "properties": {name: draw(inner) for name in names}}
    required = draw(st.one_of(st.just(names), st.lists(st.sampled_from(names), unique=True)))
    others = draw(st.sampled_from([{"additionalProperties": False}] * 2 + [{}]))
    return {**schema, **({"required": required} if required else {}), **others}


@st.composite
def _array(draw: st.DrawFn, inner: Schemas) -> Schema:
    lengths = draw(_bounds("minItems", "maxItems", st.integers(0, 3), st.integers(0, 5)))
    # One list in forty has unique items, as in published schemas; no grammar can enforce that.
    unique = {"uniqueItems": True} if draw(st.integers(0, 39)) == 39 else {}
    return {"type": "array", "items": draw(inner), **lengths, **unique}


def _tuple(inner: Schemas) -> Schemas:
    parts = st.lists(inner, min_size=1, max_size=3)
    return parts.map(lambda p: {"type": "array", "prefixItems": p, "items": False, "minItems": len(p)})


def _choice(inner: Schemas) -> Schemas:
    parts = st.lists(inner, min_size=2, max_size=3)
    words = st.sampled_from(["anyOf"] * 9 + ["oneOf"])
    return st.builds(lambda word, schemas: {word: schemas}, words, parts)
