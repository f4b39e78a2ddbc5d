"""One form that a route's body may have: the type of its applied fields, and the treatment of every field.

Runs on the event loop or, for large bodies, in a worker thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from vinfer.server.fields.body_model import Body, Reading, Unknown
from vinfer.server.fields.problems import request_error
from vinfer.server.fields.treatment import FieldRule, applied_fields, used_aliases

BodyT = TypeVar("BodyT", bound=Body)


@dataclasses.dataclass(frozen=True, slots=True)
class RequestForm(Generic[BodyT]):
    """One form that a route's body may have: its applied fields, typed, and the rule of every field."""

    fields: type[BodyT]
    rules: Mapping[str, FieldRule]

    def parse(self, body: Mapping[str, Any], unknown: Unknown, ignored: list[str] | None = None) -> BodyT:
        """Check each field by itself; the route checks the rules between fields.

        Args:
            ignored: gets the unknown keys of the history, which have no effect.

        Raises:
            RequestError: names the first bad field.
        """
        extra: Literal["forbid", "ignore"] = "forbid" if unknown == "refuse" else "ignore"
        reading = Reading(unknown, [] if ignored is None else ignored)
        try:
            return self.fields.model_validate(
                applied_fields(body, self.rules, unknown), extra=extra, context=reading
            )
        except ValidationError as error:
            raise request_error(error, used_aliases(body, self.rules)) from None
