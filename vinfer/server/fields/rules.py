"""Rules between the fields of one object, as JSON Schema: `/openapi.json` says what the routes check.

Building blocks for the `json_schema_extra` of the types in this package. A field that is null counts as left
out, as it does in the routes. A `ByType` says and checks a rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from vinfer.errors import RequestError
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


@dataclasses.dataclass(frozen=True, slots=True)
class OfType:
    """The fields that go with some values of `type`: `needs` must be there, `lacks` must be left out."""

    types: tuple[str, ...]
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()


class ByType:
    """The rule of an object whose `type` decides which of its other fields there are.

    Args:
        advice: what a refused field needs, for a message that says so instead of the type that was sent.
    """

    def __init__(self, *rules: OfType, advice: str = "") -> None:
        self._rules = {kind: rule for rule in rules for kind in rule.types}
        self._advice = advice
        self.schema = any_of(*map(_schema_of, rules))

    def check(self, sent: BaseModel, kind: str, path: str) -> None:
        """Check an object of a type; `path` is where it stands.

        Raises:
            RequestError: names the field.
        """
        names = {field.alias or name: name for name, field in type(sent).model_fields.items()}
        rule = self._rules[kind]
        for name in (*rule.lacks, *rule.needs):
            is_there = getattr(sent, names[name]) is not None
            if is_there and name in rule.lacks:
                problem = self._advice or f"is set and {path}.type is {kind}: leave it out"
                raise RequestError(f"{path}.{name} {problem}", param=f"{path}.{name}")
            if not is_there and name in rule.needs:
                raise RequestError(f"{path}.{name} is missing: send it", param=f"{path}.{name}")


def _schema_of(rule: OfType) -> Json:
    return all_of(having("type", *rule.types), present(*rule.needs), absent(*rule.lacks))


NEEDS_SCHEMA_TYPE = "needs type json_schema: leave it out or change the type"
