"""Refuses JSON Schemas that would not do what they say: endless ones, and misspelled keywords.

JSON Schema allows any key, and one that is unknown says nothing. Pure functions, any thread. A schema may not
be nested deeper than a request body.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vinfer.errors import RequestError
from vinfer.server.constrain.annotations import LISTS, MAPS, SAY_NOTHING, SINGLE
from vinfer.server.constrain.endless import check_ends
from vinfer.server.fields.near_misses import near_miss
from vinfer.server.fields.problems import shown

_RESTRICTING = frozenset(
    {
        *(*MAPS, *LISTS, *SINGLE),
        *("type", "enum", "const", "format", "pattern", "minLength", "maxLength"),
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        *("minItems", "maxItems", "uniqueItems", "minContains", "maxContains"),
        *("required", "minProperties", "maxProperties", "dependentRequired"),
    }
)
# Extensions of OpenAPI and of generators that only look like keywords.
_OTHERS = frozenset({*SAY_NOTHING, "description", "nullable", "discriminator", "propertyOrdering"})


def check_schema(schema: Mapping[str, Any], path: str) -> None:
    """Check that an answer to a schema can end, and that each of its keywords is one.

    Raises:
        RequestError: names the field at `path`.
    """
    check_ends(schema, path)
    _check_keywords(schema, path)


def _check_keywords(schema: Mapping[str, Any], path: str) -> None:
    for key, value in schema.items():
        if key not in _RESTRICTING and key not in _OTHERS and not key.startswith("x-"):
            meant = near_miss(key, _RESTRICTING)
            if meant is not None:
                raise RequestError(
                    f"{path} has {shown(key)}, which is not a keyword: did you mean {meant}?", param=path
                )
        for part in _parts(key, value):
            if isinstance(part, dict):
                _check_keywords(part, path)


def _parts(key: str, value: Any) -> list[Any]:
    if key in MAPS and isinstance(value, dict):
        return list(value.values())
    if key in LISTS and isinstance(value, list):
        return value
    return [value] if key in SINGLE else []
