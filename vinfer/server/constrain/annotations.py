"""Drops what a JSON Schema says about itself, and writes `propertyNames` as what llguidance knows.

Generators of schemas (zod, pydantic, OpenAPI) add keys that say nothing about a value. Pure functions, any
thread. A schema may not be nested deeper than a request body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = dict[str, Any]

MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
SINGLE = (
    *("items", "additionalProperties", "additionalItems", "unevaluatedItems", "unevaluatedProperties"),
    *("propertyNames", "contains", "not", "if", "then", "else"),
)
"""Where the parts of a schema are: as values of a map, in a list, or alone."""
SAY_NOTHING = frozenset(
    {
        *("$schema", "$comment", "$vocabulary", "title", "examples", "example", "default", "deprecated"),
        *("readOnly", "writeOnly", "markdownDescription", "enumNames", "errorMessage", "xml", "externalDocs"),
    }
)


_FREE_FORMATS = frozenset(
    {"binary", "password", "path", "file-path", "directory-path", "text", "textarea", "multi-line"}
)
"""Formats that say how a text is used or shown: any text has them."""


def without_annotations(schema: Mapping[str, Any]) -> Schema:
    """Return a schema that allows the same values, without annotations and extensions (`x-...`).

    `$id` is dropped if nothing refers to it. `propertyNames` that any name satisfies is dropped; names from
    a list or with a pattern are listed under `properties` or `patternProperties`, if the schema has neither.
    """
    plain = _plain(schema)
    if "$id" in plain and all(reference.startswith("#") for reference in _references(plain)):
        del plain["$id"]
    return plain


def _plain(part: Mapping[str, Any]) -> Schema:
    def plain(inner: Any) -> Any:
        return _plain(inner) if isinstance(inner, dict) else inner

    new: Schema = {}
    for key, value in part.items():
        if key in SAY_NOTHING or key.startswith("x-"):
            continue
        if key == "format" and isinstance(value, str) and value in _FREE_FORMATS:
            continue
        if key in MAPS and isinstance(value, dict):
            new[key] = {name: plain(inner) for name, inner in value.items()}
        elif key in LISTS and isinstance(value, list):
            new[key] = [plain(inner) for inner in value]
        elif key in SINGLE:
            new[key] = plain(value)
        else:
            new[key] = value
    return _with_listed_names(new)


def _with_listed_names(part: Schema) -> Schema:
    names = part.get("propertyNames", True)
    if names is True or (isinstance(names, dict) and names.keys() <= {"type"} and _is_text(names)):
        return {key: value for key, value in part.items() if key != "propertyNames"}
    lists_names = part.get("properties") or part.get("patternProperties")
    if lists_names or not isinstance(names, dict) or not _is_text(names):
        return part
    value = part.get("additionalProperties", True)
    rest = {key: inner for key, inner in part.items() if key != "propertyNames"}
    if names.keys() <= {"type", "enum"} and _all_text(names["enum"]):
        return {**rest, "properties": dict.fromkeys(names["enum"], value), "additionalProperties": False}
    if names.keys() <= {"type", "pattern"} and isinstance(names["pattern"], str):
        return {**rest, "patternProperties": {names["pattern"]: value}, "additionalProperties": False}
    return part


def _is_text(names: Schema) -> bool:
    return bool(names.get("type", "string") == "string")


def _all_text(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _references(part: Any) -> list[str]:
    if isinstance(part, list):
        return [reference for inner in part for reference in _references(inner)]
    if not isinstance(part, dict):
        return []
    own = [part[key] for key in ("$ref", "$dynamicRef") if isinstance(part.get(key), str)]
    return own + [reference for inner in part.values() for reference in _references(inner)]
