"""What a request may set in the chat template: `chat_template_kwargs` and `reasoning_effort`.

Types for `chat`, on its threads, and pure functions for worker threads. The config lists names and types
(`models[].chat_template_kwargs`). A request may set those that the template reads; anything else is refused
rather than ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from vinfer.errors import RequestError
from vinfer.server.answers.response_types import ReasoningEffort
from vinfer.server.fields.problems import shown
from vinfer.server.http.body import printable
from vinfer.server.model_table import ServedModel

THINKING_SWITCH = "enable_thinking"
"""The variable by which chat templates switch reasoning on and off."""
MAX_TEMPLATE_KWARGS = 16
MAX_TEMPLATE_STRING_CHARS = 1024
MAX_TEMPLATE_NUMBER = 2**53
"""Up to this value JSON numbers are exact everywhere."""

_TYPES: Mapping[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
}

_NUMBER = {"minimum": -MAX_TEMPLATE_NUMBER, "maximum": MAX_TEMPLATE_NUMBER}
KWARG_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", **_NUMBER},
    "number": {"type": "number", **_NUMBER},
    "string": {"type": "string", "maxLength": MAX_TEMPLATE_STRING_CHARS},
}
"""The schema of a variable's values, by the type that the config names."""


def _scalar(value: Any) -> Any:
    if not isinstance(value, (bool, int, float, str)):
        raise PydanticCustomError("scalar", "must be a boolean, a number or a string")
    if isinstance(value, str) and len(value) > MAX_TEMPLATE_STRING_CHARS:
        raise PydanticCustomError(
            "scalar",
            "has {num} characters; must have at most {limit}",
            {"num": len(value), "limit": MAX_TEMPLATE_STRING_CHARS},
        )
    # Written so that NaN fails too.
    if not isinstance(value, str) and not abs(value) <= MAX_TEMPLATE_NUMBER:
        raise PydanticCustomError(
            "scalar", "must be between -{limit} and {limit}", {"limit": MAX_TEMPLATE_NUMBER}
        )
    return value


def _without_nulls(kwargs: Any) -> Any:
    return (
        {key: item for key, item in kwargs.items() if item is not None}
        if isinstance(kwargs, dict)
        else kwargs
    )


_Scalar = (
    None
    | bool
    | Annotated[float, Field(ge=-MAX_TEMPLATE_NUMBER, le=MAX_TEMPLATE_NUMBER)]
    | Annotated[str, Field(max_length=MAX_TEMPLATE_STRING_CHARS)]
)
TemplateKwargs = Annotated[
    dict[str, Annotated[Any, BeforeValidator(_scalar, json_schema_input_type=_Scalar)]],
    Field(max_length=MAX_TEMPLATE_KWARGS),
    BeforeValidator(_without_nulls),
]


def settable_kwargs(model: ServedModel) -> dict[str, str]:
    """Return the `chat_template_kwargs` that requests may set, with types: those allowed and read."""
    read = model.template_variables
    return {name: kind for name, kind in model.chat_template_kwargs.items() if name in read}


def reads_reasoning_effort(model: ServedModel) -> bool:
    """Return whether the chat template reads `reasoning_effort`."""
    return "reasoning_effort" in model.template_variables


def template_kwargs(
    model: ServedModel, sent: Mapping[str, Any], reasoning_effort: ReasoningEffort | None
) -> dict[str, Any]:
    """Return the template's variables that a request sets.

    Raises:
        RequestError: one is not allowed, not read by the template, or of the wrong type.
    """
    settable = settable_kwargs(model)
    for name, value in sent.items():
        param = f"chat_template_kwargs.{name[:64]}"
        if name not in model.chat_template_kwargs:
            raise RequestError(
                f"chat_template_kwargs has {printable(name)}, which requests may not set: leave it out or "
                f"name it in models[{model.position}].chat_template_kwargs",
                param=param,
            )
        if name not in settable:
            raise RequestError(
                f"{param} is not read by the chat template of model {model.name}: leave it out", param=param
            )
        kind = settable[name]
        if (kind != "boolean" and isinstance(value, bool)) or not isinstance(value, _TYPES[kind]):
            raise RequestError(f"{param} is {shown(value)}; must be of type {kind}", param=param)
    if reasoning_effort is None:
        return dict(sent)
    if not reads_reasoning_effort(model):
        if reasoning_effort == "none":
            return _without_reasoning(model, sent)
        raise RequestError(
            f"reasoning_effort is not read by the chat template of model {model.name}: leave it out",
            param="reasoning_effort",
        )
    return {**sent, "reasoning_effort": reasoning_effort}


def _without_reasoning(model: ServedModel, sent: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables that keep a model from reasoning; most models do not reason anyway."""
    if not model.answer_form.has_reasoning:
        return dict(sent)
    if THINKING_SWITCH not in settable_kwargs(model) or sent.get(THINKING_SWITCH):
        raise RequestError(
            f"reasoning_effort is 'none', but model {model.name} reasons"
            + (" as chat_template_kwargs asks" if sent.get(THINKING_SWITCH) else " in any case")
            + ": leave it out",
            param="reasoning_effort",
        )
    return {**sent, THINKING_SWITCH: False}
