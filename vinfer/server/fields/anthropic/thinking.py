"""`thinking` of the Messages API: whether the model reasons before it answers.

Types for the forms, on their threads, and pure functions. A chat template decides about reasoning, so what a
request may ask for depends on the model.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from vinfer.errors import RequestError
from vinfer.server.fields.body_model import Body
from vinfer.server.fields.rules import ByType, OfType
from vinfer.server.fields.sampling import MAX_INT32
from vinfer.server.fields.template_kwargs import THINKING_SWITCH, settable_kwargs
from vinfer.server.model_table import ServedModel

ThinkingType = Literal["enabled", "disabled", "adaptive"]


class Thinking(Body):
    """How the model reasons before it answers. `budget_tokens` has no effect: `max_tokens` limits both."""

    rules = (
        ByType(
            OfType(("enabled",), needs=("budget_tokens",)),
            OfType(("adaptive",), lacks=("budget_tokens",)),
            OfType(("disabled",), lacks=("budget_tokens", "display")),
        ),
    )

    type: ThinkingType
    budget_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    display: Literal["summarized", "omitted"] | None = None


def thinking_types(model: ServedModel) -> set[ThinkingType]:
    """Return what a request may ask of a model; one that never reasons decides so by itself too."""
    if not model.answer_form.has_reasoning:
        return {"disabled", "adaptive"}
    return {"enabled", "adaptive", "disabled"} if _has_switch(model) else {"enabled", "adaptive"}


def thinking_kwargs(thinking: Thinking | None, model: ServedModel) -> dict[str, Any]:
    """Return the template's variables that `thinking` sets.

    Raises:
        RequestError: the model always reasons, or never does.
    """
    if thinking is None:
        return {}
    if thinking.type not in thinking_types(model):
        does = "always reasons" if model.answer_form.has_reasoning else "does not reason"
        raise RequestError(
            f"thinking.type is {thinking.type} and model {model.name} {does}: leave thinking out",
            param="thinking.type",
        )
    if not model.answer_form.has_reasoning or not _has_switch(model):
        return {}
    return {THINKING_SWITCH: thinking.type != "disabled"}


def _has_switch(model: ServedModel) -> bool:
    return settable_kwargs(model).get(THINKING_SWITCH) == "boolean"
