"""The base of every block of the YAML file, and the values that several blocks share.

Plain data; knows no key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_INT32 = 2**31 - 1


Text = TypeVar("Text", str, Path)


def refused(*problems: tuple[tuple[str | int, ...], str]) -> PydanticCustomError:
    """Return one pydantic error made of (path below the field, sentence) pairs; `problems` unpacks it."""
    return PydanticCustomError(
        "config", "{text}", {"text": "; ".join(text for _, text in problems), "problems": list(problems)}
    )


def printable(value: Text) -> Text:
    if not str(value).isprintable():
        raise refused(((), "contains control characters: remove them"))
    return value


class Block(BaseModel):
    """A block: immutable, and strict about keys and types."""

    # Strict: `port: true` or `port: "80"` is a mistake, not the number 1 or 80.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True
    )


Count = Annotated[int, Field(ge=1, le=MAX_INT32)]
LocalPath = Annotated[Path, Field(strict=False), AfterValidator(printable)]
