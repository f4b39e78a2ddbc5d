"""The pydantic base of every record in a manifest: immutable, and strict about unknown fields."""

from __future__ import annotations

import pydantic


class Frozen(pydantic.BaseModel):
    """An immutable record that refuses unknown fields."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
