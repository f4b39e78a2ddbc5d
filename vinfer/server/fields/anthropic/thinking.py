"""`thinking` of the Messages API: whether the model reasons before it answers.

Types for the forms, on their threads, and pure functions. A chat template decides about reasoning, so what a
request may ask for depends on the model.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from vinfer.errors import RequestError
from vinfer.server.fields.body_model import Body
from vinfer.server.fields.rules import absent, all_of, any_of, having, present
from vinfer.server.fields.sampling import MAX_INT32
from vinfer.server.fields.template_kwargs import THINKING_SWITCH, settable_kwargs
from vinfer.server.model_table import ServedModel

ThinkingType = Literal["enabled", "disabled", "adaptive"]


class Thinking(Body):
    """How the model reasons before it answers. `budget_tokens` has no effect: `max_tokens` limits both."""

    model_config = ConfigDict(
        json_schema_extra=any_of(
            all_of(having("type", "enabled"), present("budget_tokens")),
            all_of(having("type", "adaptive"), absent("budget_tokens")),
            all_of(having("type", "disabled"), absent("budget_tokens", "display")),
        )
    )

    type: ThinkingType
    budget_tokens: int | None = Field(None, ge=1, le=MAX_INT32)
    display: Literal["summarized", "omitted"] | None = None


def check_thinking(thinking: Thinking | None) -> None:
    """Check the fields against each other.

    Raises:
        RequestError: names the field.
    """
    if thinking is None:
        return
    if thinking.type == "enabled" and thinking.budget_tokens is None:
        raise RequestError("thinking.budget_tokens is missing: send it", param="thinking.budget_tokens")
    for name in ("budget_tokens", "display"):
        if getattr(thinking, name) is not None and (
            thinking.type == "disabled" or (thinking.type == "adaptive" and name == "budget_tokens")
        ):
            path = f"thinking.{name}"
            raise RequestError(
                f"{path} is set and thinking.type is {thinking.type}: leave it out", param=path
            )


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
