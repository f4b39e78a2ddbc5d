"""The pydantic base of every record in a manifest: immutable, and strict about unknown fields."""

from __future__ import annotations

import pydantic


class Frozen(pydantic.BaseModel):
    """A record that cannot change and refuses fields that it does not know."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
