"""The pydantic bases of everything in a request body: frozen, strict, and null counts as left out."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from vinfer.server.fields.near_misses import near_miss, plain_key
from vinfer.server.fields.rules import BetweenFields, write_rules

Unknown = Literal["refuse", "ignore"]


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """How one body is read.

    Attributes:
        unknown: `server.unknown_fields`.
        ignored: the unknown keys that were found in the history and had no effect; grows while it is read.
    """

    unknown: Unknown
    ignored: list[str] = dataclasses.field(default_factory=list)


class Body(BaseModel):
    """The base of every request body and of every object in one that asks for something.

    An unknown key is refused.

    Attributes:
        rules: those between the fields.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra=lambda schema, model: write_rules(schema, model.rules),
    )
    rules: ClassVar[tuple[BetweenFields, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            return value
        known = _known_keys(cls)
        kept = {key: item for key, item in value.items() if item is not None or key not in known}
        return cls._without_unknown(kept, known, info)

    @classmethod
    def _without_unknown(cls, value: dict[str, Any], known: frozenset[str], info: ValidationInfo) -> Any:
        return value

    def check(self, path: str = "") -> None:
        """Check the fields against each other; `path` is where the object stands.

        Raises:
            RequestError: names the field.
        """
        for rule in self.rules:
            rule.check(self, path)


class HistoryBody(Body):
    """The base of every object of a conversation: client libraries add keys to what they send back.

    An unknown key has no effect, and `Reading.ignored` names it. It is refused if the prompt would lack
    something: if it is probably a misspelled key, or if it carries content. Empty values say nothing.
    """

    model_config = ConfigDict(extra="ignore")
    content_keys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def _without_unknown(cls, value: dict[str, Any], known: frozenset[str], info: ValidationInfo) -> Any:
        reading = info.context if isinstance(info.context, Reading) else Reading("refuse")
        for key, item in value.items():
            if key in known or _is_empty(item):
                continue
            if plain_key(key) in map(plain_key, cls.content_keys):
                raise _refused(
                    key, item, "carries content that would be missing from the prompt: leave it out"
                )
            meant = near_miss(key, known)
            if meant is not None and reading.unknown == "refuse":
                raise _refused(key, item, f"is not a known field: did you mean {meant}?")
            reading.ignored.append(key)
        return {key: item for key, item in value.items() if key in known}


def _refused(key: str, value: Any, message: str) -> ValidationError:
    # An error with a location of its own: a custom error would be reported for the whole object.
    problem = InitErrorDetails(
        type=PydanticCustomError("history", "{message}", {"message": message}), loc=(key,), input=value
    )
    return ValidationError.from_exception_data("history", [problem])


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


@functools.cache
def _known_keys(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(field.alias or name for name, field in model.model_fields.items())
