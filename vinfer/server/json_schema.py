"""JSON Schemas of requests: objects and integers that are left open are closed.

By JSON Schema an object may have any property beside those that are listed, and an integer any number of
digits. Nobody who lists properties wants others, and hardly anybody can read an integer of more than 64 bits;
a small model writes both until max_tokens. Whatever satisfies the closed schema satisfies the open one.
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
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems")

# The largest of 64 bits that a float holds: llguidance reads bounds as floats.
_MAX_INTEGER = 2**63 - 1024
_INTEGER_LIMITS = frozenset(
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


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects have no properties but those listed and whose integers have 64 bits.

    A schema that composes others (allOf, oneOf, not, if, contains and their like, or a $ref or anyOf beside
    properties) is returned as it is. `"additionalProperties": true` keeps an object open. Integers stay open
    where something else is said of them than limits.

    Args:
        schema: not nested deeper than a request body may be.
    """
    try:
        new = _closed(schema)
    except _ComposingError:
        return dict(schema)
    definitions = new.get("$defs", {})
    if not isinstance(definitions, dict):
        return new
    forms: dict[str, str] = {}
    try:
        bounded = _with_bounded_integers(new, forms)
    except _NestedIdError:
        return new
    if not forms or definitions.keys() & forms.values():
        return new
    shared = {name: json.loads(form) for form, name in forms.items()}
    return {**bounded, "$defs": {**bounded.get("$defs", {}), **shared}}


class _ComposingError(Exception):
    """A part of the schema composes others."""


class _NestedIdError(Exception):
    """A part of the schema resolves its references by itself."""


def _closed(part: Mapping[str, Any]) -> dict[str, Any]:
    if _COMPOSING & part.keys() or ("properties" in part and ("$ref" in part or "anyOf" in part)):
        raise _ComposingError
    new = _with_parts(part, _closed)
    if _can_be_closed(part):
        new["additionalProperties"] = False
    return new


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


def _with_bounded_integers(part: Mapping[str, Any], forms: dict[str, str]) -> dict[str, Any]:
    """Replace open integers by references: a range compiles in milliseconds, so each is compiled once.

    Args:
        forms: what an integer is limited to, as JSON, to its name among the definitions; added to.
    """

    def change(inner: Mapping[str, Any]) -> dict[str, Any]:
        if "$id" in inner:
            raise _NestedIdError
        return _with_bounded_integers(inner, forms)

    if not _is_open_integer(part):
        return _with_parts(part, change)
    limits = {key: part[key] for key in part.keys() & _INTEGER_LIMITS}
    if "exclusiveMinimum" not in limits:
        limits.setdefault("minimum", -_MAX_INTEGER)
    if "exclusiveMaximum" not in limits:
        limits.setdefault("maximum", _MAX_INTEGER)
    name = forms.setdefault(json.dumps(limits, sort_keys=True), f"integer-of-64-bits-{len(forms)}")
    return {"$ref": f"#/$defs/{name}"}


def _is_open_integer(part: Mapping[str, Any]) -> bool:
    if part.get("type") not in ("integer", ["integer", "null"], ["null", "integer"]):
        return False
    least, most = (part.get(key, part.get(f"exclusive{key.capitalize()}")) for key in ("minimum", "maximum"))
    if least is not None and most is not None:
        return False
    known = next((limit for limit in (least, most) if limit is not None), 0)
    return (
        part.keys() <= _INTEGER_LIMITS | _ANNOTATIONS
        and isinstance(known, int | float)
        and abs(known) < _MAX_INTEGER
    )


def _can_be_closed(part: Mapping[str, Any]) -> bool:
    properties, required = part.get("properties"), part.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or _OTHER_SOURCES & part.keys():
        return False
    least = part.get("minProperties", 0)
    if not isinstance(least, int) or least > len(properties):
        return False
    return all(isinstance(name, str) and name in properties for name in required)
