"""Closes the JSON Schemas of requests: open objects are closed, and values of any length get a limit.

JSON Schema allows an object to have unlisted properties. A number may have any number of digits on both sides
of its point, as may a fraction of a second, and a URI's scheme may have any length. Nobody who lists
properties wants others, or integers of more than 64 bits, but a small model makes them up until max_tokens.
Whatever satisfies the closed schema satisfies the open one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from vinfer.server.constrain.annotations import without_annotations

# With these keywords, narrowing a part could widen the whole or contradict another part.
_COMPOSING = frozenset(
    (
        "allOf",
        "oneOf",
        "not",
        "if",
        "then",
        "else",
        "contains",
        "dependentSchemas",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
    )
)
# Next to `properties`, these say more about the same object.
_OTHER_SOURCES = frozenset(("$ref", "anyOf", "patternProperties", "propertyNames", "additionalProperties"))
MAX_INTEGER = 2**63 - 1024
"""The largest float below 2**63: llguidance uses floats for limits."""
SMALLEST_FRACTION = 1e-9
"""Numbers get nine decimal places. With this limit, as with any other, llguidance writes no exponents."""
LEAST_ROOM = 1e-3
"""Least distance between a number's limits: in a smaller range, nine places might leave no value."""
MAX_FORMAT_CHARS = {"date-time": 35, "time": 24, "duration": 32, "email": 254, "hostname": 253, "uri": 2048}
"""Limits of formats that have none of their own: nanoseconds, RFC 5321, RFC 1035, what proxies accept."""
FORMAT_STARTS = {"email": "^[^@]{1,64}@", "uri": "^[^:]{1,15}:"}
"""The first part could be as long as the whole: RFC 5321 limits it to 64 characters; schemes are short."""
_NUMBER_LIMITS = frozenset(
    ("type", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf")
)
# These say nothing about the value.
_ANNOTATIONS = frozenset(
    (
        "title",
        "description",
        "default",
        "examples",
        "format",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
    )
)
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have only the listed properties, unless it says more about them.

    Annotations are dropped.

    Numbers without limits get limits of 64 bits, shared by all numbers that are alike. Numbers with fractions
    get nine decimal places. Formats get a maximum length, and so does their first part.

    A part that composes others (allOf, oneOf, not, if, contains and the like, or a $ref or anyOf next to
    properties) stays unchanged with everything in it. If it refers to other parts, the whole schema stays
    unchanged. `"additionalProperties": true` keeps an object open.

    Args:
        schema: not nested deeper than a request body may be.
    """
    schema = without_annotations(schema)
    try:
        new = _closed(schema)
    except _ReferringError:
        return schema
    definitions = new.get("$defs", {})
    if not isinstance(definitions, dict):
        return new
    names: dict[str, str] = {}
    try:
        shared = _with_shared_numbers(new, names)
    except _NestedIdError:
        return new
    if not names or definitions.keys() & names.values():
        return new
    numbers = {name: json.loads(limits) for limits, name in names.items()}
    return {**shared, "$defs": {**shared.get("$defs", {}), **numbers}}


class _ReferringError(Exception):
    """A part that composes others refers to a part that could become narrower."""


class _NestedIdError(Exception):
    """A part of the schema has its own `$id`, against which its references are resolved."""


def _closed(part: Mapping[str, Any]) -> dict[str, Any]:
    if _COMPOSING & part.keys() or ("properties" in part and ("$ref" in part or "anyOf" in part)):
        if _refers(part):
            raise _ReferringError
        return dict(part)
    new = _with_parts(part, _closed)
    if part.get("uniqueItems") is False:
        # It has no effect, and llguidance refuses the keyword.
        del new["uniqueItems"]
    if _can_be_closed(part):
        new["additionalProperties"] = False
    return new | _ends(part)


def _refers(part: Any) -> bool:
    if isinstance(part, dict):
        return bool({"$ref", "$dynamicRef"} & part.keys()) or any(map(_refers, part.values()))
    return isinstance(part, list) and any(map(_refers, part))


def _with_parts(
    part: Mapping[str, Any], change: Callable[[Mapping[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Return a copy whose direct parts are changed."""

    def changed(inner: Any) -> Any:
        return change(inner) if isinstance(inner, dict) else inner

    new = dict(part)
    for key, value in part.items():
        if key in _MAPS and isinstance(value, dict):
            new[key] = {name: changed(inner) for name, inner in value.items()}
        elif key in _LISTS and isinstance(value, list):
            new[key] = [changed(inner) for inner in value]
        elif key in _SINGLE:
            new[key] = changed(value)
    return new


def _with_shared_numbers(part: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Replace 64-bit numbers with references: llguidance needs milliseconds to compile such a range.

    Args:
        names: a number's limits, as JSON, to its name among the definitions; new ones are added.
    """

    def change(inner: Mapping[str, Any]) -> dict[str, Any]:
        if "$id" in inner:
            raise _NestedIdError
        return _with_shared_numbers(inner, names)

    is_wide = part.get("minimum") == -MAX_INTEGER or part.get("maximum") == MAX_INTEGER
    if not is_wide or "type" not in part or not part.keys() <= _NUMBER_LIMITS | _ANNOTATIONS:
        return _with_parts(part, change)
    limits = {key: part[key] for key in part.keys() & _NUMBER_LIMITS}
    name = names.setdefault(json.dumps(limits, sort_keys=True), f"number-of-64-bits-{len(names)}")
    return {"$ref": f"#/$defs/{name}"}


def _ends(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits that a part lacks."""
    kinds = part.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    new: dict[str, Any] = {}
    has_fraction = "number" in kinds
    if ("integer" in kinds or has_fraction) and not {"enum", "const"} & part.keys():
        low, high = (
            [part[key] for key in keys if isinstance(part.get(key), int | float)]
            for keys in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum"))
        )
        if not low and all(bound >= -MAX_INTEGER for bound in high):
            new["minimum"] = -MAX_INTEGER
        if not high and all(bound <= MAX_INTEGER for bound in low):
            new["maximum"] = MAX_INTEGER
        has_room = not low or not high or min(high) - max(low) >= LEAST_ROOM
        has_room &= all(abs(bound) <= MAX_INTEGER for bound in (*low, *high))
        if has_fraction and "multipleOf" not in part and has_room:
            new["multipleOf"] = SMALLEST_FRACTION
    if "string" in kinds and not {"enum", "const", "pattern"} & part.keys():
        new |= _format_ends(part)
    return new


def _format_ends(part: Mapping[str, Any]) -> dict[str, Any]:
    name, least = part.get("format"), part.get("minLength", 0)
    longest = MAX_FORMAT_CHARS.get(name) if isinstance(name, str) else None
    if longest is None or not isinstance(least, int | float) or least > longest:
        return {}
    new: dict[str, Any] = {} if "maxLength" in part else {"maxLength": longest}
    return new | ({"pattern": FORMAT_STARTS[name]} if name in FORMAT_STARTS else {})


def _can_be_closed(part: Mapping[str, Any]) -> bool:
    properties, required = part.get("properties"), part.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or _OTHER_SOURCES & part.keys():
        return False
    least = part.get("minProperties", 0)
    if not isinstance(least, int) or least > len(properties):
        return False
    return all(isinstance(name, str) and name in properties for name in required)
