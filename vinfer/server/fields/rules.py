"""Rules between the fields of one object: each checks a body and is written into `/openapi.json`.

`Body.rules` lists those of a type. A field that is null counts as left out, in the document as in the check.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from vinfer.errors import RequestError
from vinfer.server.json_object import Json


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """What may hold of an object, as JSON Schema and for the object that was parsed from it."""

    schema: Json
    holds: Callable[[Any], bool]


def absent(*names: str) -> Condition:
    """Hold if all of the fields are left out."""
    schema = {"properties": {name: {"type": "null"} for name in names}}
    return Condition(schema, lambda sent: all(_value(sent, name) is None for name in names))


def present(*names: str) -> Condition:
    """Hold if all of the fields are there."""
    schema = {"properties": {name: {"not": {"type": "null"}} for name in names}, "required": list(names)}
    return Condition(schema, lambda sent: all(_value(sent, name) is not None for name in names))


def one_of(name: str, *values: Any) -> Condition:
    """Hold if the field has one of the values, of which one stands for a field that is left out."""
    schema = {"properties": {name: {"enum": list(values)}}}
    return Condition(schema, lambda sent: _value(sent, name) in values)


def having(name: str, *values: Any) -> Condition:
    """Hold if the field is there and has one of the values."""
    known = one_of(name, *values)
    return Condition({**known.schema, "required": [name]}, known.holds)


def inside(name: str, condition: Condition) -> Condition:
    """Hold if the field is left out, or the condition holds of the object in it."""
    schema = {"properties": {name: {"anyOf": [{"type": "null"}, condition.schema]}}}
    return Condition(schema, lambda sent: (value := _value(sent, name)) is None or condition.holds(value))


def all_of(*parts: Condition) -> Condition:
    """Hold if all of the parts do; they are about different fields."""
    schema: Json = {"properties": {}}
    required: list[str] = []
    for part in parts:
        schema["properties"] |= part.schema["properties"]
        required += part.schema.get("required", ())
    if required:
        schema["required"] = required
    checks = [part.holds for part in parts]

    def holds(sent: Any) -> bool:
        # Faster than `all`: a conversation may have thousands of messages.
        for check in checks:  # noqa: SIM110
            if not check(sent):
                return False
        return True

    return Condition(schema, holds)


def any_of(*parts: Condition) -> Condition:
    """Hold if one of the parts does."""
    schema = {"anyOf": [part.schema for part in parts]}
    checks = [part.holds for part in parts]

    def holds(sent: Any) -> bool:
        for check in checks:  # noqa: SIM110
            if check(sent):
                return True
        return False

    return Condition(schema, holds)


@functools.cache
def _attributes(model: type[BaseModel]) -> dict[str, str]:
    return {field.alias or name: name for name, field in model.model_fields.items()}


def _value(sent: BaseModel, name: str) -> Any:
    return getattr(sent, _attributes(type(sent))[name])


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong if a part of a rule does not hold.

    Attributes:
        field: the field that an error names, with which its message begins.
        about: the rest of the message.
        part: the part of the rule; None for all of it.
    """

    field: str
    about: str
    part: Condition | None = None


class Rule:
    """A rule that is a condition. The first of the problems is told whose part does not hold."""

    def __init__(self, condition: Condition, *problems: Problem) -> None:
        self._condition = condition
        self._problems = problems
        self.schema = condition.schema

    def check(self, sent: BaseModel, path: str) -> None:
        """Check an object; `path` is where it stands.

        Raises:
            RequestError: names the field.
        """
        if self._condition.holds(sent):
            return
        problem = next(each for each in self._problems if each.part is None or not each.part.holds(sent))
        name = _inside(path, problem.field)
        raise RequestError(f"{name} {problem.about}", param=name)


class ExactlyOne:
    """The rule of an object that has one of some fields, and no other of them."""

    def __init__(self, *names: str) -> None:
        self._names = names
        self.schema = any_of(
            *(all_of(present(name), absent(*(set(names) - {name}))) for name in names)
        ).schema

    def check(self, sent: BaseModel, path: str) -> None:
        """See `Rule.check`."""
        num_there = sum(_value(sent, name) is not None for name in self._names)
        if num_there != 1:
            known = f"{', '.join(self._names[:-1])} and {self._names[-1]}"
            raise RequestError(f"{path} has {num_there} of {known}: send one", param=path)


@dataclasses.dataclass(frozen=True, slots=True)
class OfType:
    """The fields that go with some values of `type`: `needs` must be there, `lacks` must be left out."""

    types: tuple[str, ...]
    needs: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    @property
    def condition(self) -> Condition:
        return all_of(having("type", *self.types), present(*self.needs), absent(*self.lacks))


class ByType:
    """The rule of an object whose `type` decides which of its other fields there are.

    Args:
        advice: what a refused field needs, for a message that says so instead of the type that was sent.
    """

    def __init__(self, *rules: OfType, advice: str = "") -> None:
        self._rules = {kind: rule for rule in rules for kind in rule.types}
        self._advice = advice
        self.schema = any_of(*(rule.condition for rule in rules)).schema

    def check(self, sent: BaseModel, path: str) -> None:
        """See `Rule.check`."""
        kind = _value(sent, "type")
        rule = self._rules[kind]
        for name in (*rule.lacks, *rule.needs):
            is_there = _value(sent, name) is not None
            if is_there and name in rule.lacks:
                problem = self._advice or f"is set and {path}.type is {kind}: leave it out"
                raise RequestError(f"{path}.{name} {problem}", param=f"{path}.{name}")
            if not is_there and name in rule.needs:
                raise RequestError(f"{path}.{name} is missing: send it", param=f"{path}.{name}")


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


BetweenFields = Rule | ExactlyOne | ByType
"""Has a `schema` and a `check`."""


def write_rules(schema: Json, rules: Sequence[BetweenFields]) -> None:
    """Write rules into the schema of their object."""
    if len(rules) == 1:
        schema |= rules[0].schema
    elif rules:
        schema["allOf"] = [rule.schema for rule in rules]


NEEDS_SCHEMA_TYPE = "needs type json_schema: leave it out or change the type"
