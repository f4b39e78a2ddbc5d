"""Rules between the fields of one object, as JSON Schema: `/openapi.json` says what the routes check.

Building blocks for the `json_schema_extra` of the types in this package. A field that is null counts as left
out, as it does in the routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vinfer.server.json_object import Json


def absent(*names: str) -> Json:
    """Return a schema that holds if all of the fields are left out."""
    return {"properties": {name: {"type": "null"} for name in names}}


def present(*names: str) -> Json:
    """Return a schema that holds if all of the fields are there."""
    return {"properties": {name: {"not": {"type": "null"}} for name in names}, "required": list(names)}


def having(name: str, *values: Any) -> Json:
    """Return a schema that holds if the field is there and has one of the values."""
    return {"properties": {name: {"enum": list(values)}}, "required": [name]}


def all_of(*parts: Json) -> Json:
    """Return a schema that holds if all of the parts do; they are about different fields."""
    properties: Json = {}
    required: list[str] = []
    for part in parts:
        properties.update(part["properties"])
        required += part.get("required", ())
    return {"properties": properties, **({"required": required} if required else {})}


def any_of(*parts: Json) -> Json:
    """Return a schema that holds if one of the parts does."""
    return {"anyOf": list(parts)}


def exactly_one_of(names: Sequence[str]) -> Json:
    """Return a schema that holds if one of the fields is there and the others are not."""
    return any_of(*(all_of(present(name), absent(*(set(names) - {name}))) for name in names))
