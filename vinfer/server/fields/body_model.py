"""The pydantic base of everything in a request body: frozen, strict, and refusing unknown fields."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """The base of every request body and of every object in one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
