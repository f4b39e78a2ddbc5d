"""One form that a route's body may have: the type of its applied fields, and the treatment of every field.

Runs on the event loop or, for large bodies, in a worker thread.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from vinfer.server.fields.body_model import Body, Reading, Unknown
from vinfer.server.fields.problems import request_error
from vinfer.server.fields.treatment import APPLIED, FieldRule, applied_fields, used_aliases

BodyT = TypeVar("BodyT", bound=Body)


@dataclasses.dataclass(frozen=True)
class RequestForm(Generic[BodyT]):
    """One form that a route's body may have.

    Attributes:
        fields: declares the fields that are applied.
        others: the rules of fields that are not.
    """

    fields: type[BodyT]
    others: Mapping[str, FieldRule] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def rules(self) -> Mapping[str, FieldRule]:
        """The rule of every field."""
        return {**dict.fromkeys(self.fields.model_fields, APPLIED), **self.others}

    def parse(self, body: Mapping[str, Any], unknown: Unknown, ignored: list[str] | None = None) -> BodyT:
        """Check each field by itself, and then the fields against each other.

        Args:
            ignored: gets the unknown keys of the history, which have no effect.

        Raises:
            RequestError: names the first bad field.
        """
        extra: Literal["forbid", "ignore"] = "forbid" if unknown == "refuse" else "ignore"
        reading = Reading(unknown, [] if ignored is None else ignored)
        try:
            fields = self.fields.model_validate(
                applied_fields(body, self.rules, unknown), extra=extra, context=reading
            )
        except ValidationError as error:
            raise request_error(error, used_aliases(body, self.rules)) from None
        fields.check()
        return fields
