"""JSON Schemas of requests: objects that leave open what else they may hold are closed, digits get an end.

By JSON Schema an object may have any property beside those that are listed, a number any number of digits on
both sides of its point, a fraction of a second too, and a URI a scheme of any length. Nobody who lists
properties wants others, nor integers of more than 64 bits, and a small model makes them up until max_tokens.
Whatever satisfies the closed schema satisfies the open one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

# Where these stand, a narrower part could make the whole wider, or contradict another part.
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
# Beside `properties` they say more about the same object.
_OTHER_SOURCES = frozenset(("$ref", "anyOf", "patternProperties", "propertyNames", "additionalProperties"))
MAX_INTEGER = 2**63 - 1024
"""The largest float below 2**63: llguidance counts in floats."""
SMALLEST_FRACTION = 1e-9
"""Numbers get this many places; beside it llguidance writes no exponents, as beside any bound."""
LEAST_ROOM = 1e-3
"""Between the bounds of a number: in less, so few places might leave nothing."""
MAX_FORMAT_CHARS = {"date-time": 35, "time": 24, "duration": 32, "email": 254, "hostname": 253, "uri": 2048}
"""Of texts whose form has no end of its own: nanoseconds, RFC 5321, RFC 1035, what proxies take."""
FORMAT_STARTS = {"email": "^[^@]{1,64}@", "uri": "^[^:]{1,15}:"}
"""What stands in front could be as long as the whole: by RFC 5321 it has 64 characters; schemes are short."""
_NUMBER_LIMITS = frozenset(
    ("type", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "multipleOf")
)
# They say nothing about the value.
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
    """Return a schema whose objects have no properties but those listed, unless it says more about them.

    Numbers without a bound get one of 64 bits, once for all that are alike, those with fractions nine places,
    and formats an end, of their first part too.

    A part that composes others (allOf, oneOf, not, if, contains and their like, or a $ref or anyOf beside
    properties) stays as it is, with all that it holds; where it refers to others, so does the whole schema.
    `"additionalProperties": true` keeps an object open.

    Args:
        schema: not nested deeper than a request body may be.
    """
    try:
        new = _closed(schema)
    except _ReferringError:
        return dict(schema)
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
    """A part of the schema resolves its references by itself."""


def _closed(part: Mapping[str, Any]) -> dict[str, Any]:
    if _COMPOSING & part.keys() or ("properties" in part and ("$ref" in part or "anyOf" in part)):
        if _refers(part):
            raise _ReferringError
        return dict(part)
    new = _with_parts(part, _closed)
    if part.get("uniqueItems") is False:
        # Says nothing, and llguidance refuses the keyword.
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
    """Replace numbers of 64 bits by references: such a range takes llguidance milliseconds to compile.

    Args:
        names: what a number is limited to, as JSON, to its name among the definitions; added to.
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
    """Return the bounds that a part lacks."""
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
