"""One form that a route's body may have: the type of its applied fields, and the treatment of every field.

Runs on the event loop or, for large bodies, in a worker thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from vinfer.server.fields.body_model import Body
from vinfer.server.fields.problems import request_error
from vinfer.server.fields.treatment import FieldRule, applied_fields

Unknown = Literal["refuse", "ignore"]


BodyT = TypeVar("BodyT", bound=Body)


@dataclasses.dataclass(frozen=True, slots=True)
class RequestForm(Generic[BodyT]):
    """One form that a route's body may have: its applied fields, typed, and the rule of every field."""

    fields: type[BodyT]
    rules: Mapping[str, FieldRule]

    def parse(self, body: Mapping[str, Any], unknown: Unknown) -> BodyT:
        """Check each field by itself; the route checks the rules between fields.

        Raises:
            RequestError: names the first bad field.
        """
        extra: Literal["forbid", "ignore"] = "forbid" if unknown == "refuse" else "ignore"
        try:
            return self.fields.model_validate(applied_fields(body, self.rules, unknown), extra=extra)
        except ValidationError as error:
            raise request_error(error) from None
