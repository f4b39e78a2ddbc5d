"""What fields of one object ask of each other, as JSON Schema: what the routes check, `/openapi.json` says.

Pieces for the `json_schema_extra` of the types beside it. A field that is null counts as
left out, as it does there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def absent(*names: str) -> Json:
    """Hold where all of the fields are left out."""
    return {"properties": {name: {"type": "null"} for name in names}}


def present(*names: str) -> Json:
    """Hold where all of the fields are there."""
    return {"properties": {name: {"not": {"type": "null"}} for name in names}, "required": list(names)}


def having(name: str, *values: Any) -> Json:
    """Hold where the field is there and has one of the values."""
    return {"properties": {name: {"enum": list(values)}}, "required": [name]}


def all_of(*parts: Json) -> Json:
    """Hold where all of the parts do; they are about different fields."""
    properties: Json = {}
    required: list[str] = []
    for part in parts:
        properties.update(part["properties"])
        required += part.get("required", ())
    return {"properties": properties, **({"required": required} if required else {})}


def any_of(*parts: Json) -> Json:
    """Hold where one of the parts does."""
    return {"anyOf": list(parts)}


def exactly_one_of(names: Sequence[str]) -> Json:
    """Hold where one of the fields is there and the others are not."""
    return any_of(*(all_of(present(name), absent(*(set(names) - {name}))) for name in names))
