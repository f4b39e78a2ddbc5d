"""The pydantic base of everything inside a request body: frozen, strict, refusing fields it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """What a request body, or an object in it, is checked by."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
