"""Turns pydantic's error list into one RequestError: the path, the value, the limit, the next move.

Pure functions on the event loop or in a worker thread. It knows no route.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BeforeValidator, Discriminator, ValidationError
from pydantic_core import PydanticCustomError

from vinfer.errors import RequestError
from vinfer.server.http.body import printable

_KINDS: Mapping[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}

_EXPECTED: Mapping[str, str] = {
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def field_path(location: Sequence[str | int]) -> str:
    """Return a location as clients know it: `messages[0].content[1].type`."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        # A name in brackets is not a field: it is pydantic's mark of a key, or our name of a union's branch.
        elif not (step.startswith("[") and step.endswith("]")):
            path += f".{step[:64]}" if path else step[:64]
    return path


def request_error(error: ValidationError, sent_names: Mapping[str, str]) -> RequestError:
    """Return the error for the first problem of a body.

    Args:
        sent_names: fields that were sent under another name, and that name.
    """
    problem = error.errors(include_url=False)[0]
    first, *rest = problem["loc"]
    path = field_path((sent_names.get(str(first), first), *rest))
    describe = _DESCRIPTIONS.get(problem["type"], _other)
    if problem["type"] in _EXPECTED:
        describe = _wrong_type
    return RequestError(
        f"{path} {describe(problem['type'], problem.get('input'), problem.get('ctx', {}), problem['msg'])}",
        param=path,
    )


@contextlib.contextmanager
def renaming(names: Sequence[tuple[re.Pattern[str], str]]) -> Iterator[None]:
    """Make errors name the fields of another route.

    Args:
        names: the patterns of one route's names, and what stands for each in the other's; tried in order.

    Raises:
        RequestError: as it was raised, except for the names.
    """
    try:
        yield
    except RequestError as error:
        if error.param is None:
            raise
        message, param = error.message, error.param
        for pattern, name in names:
            message, param = pattern.sub(name, message), pattern.sub(name, param)
        raise type(error)(message, param=param) from None


def shown(value: Any) -> str:
    """Return a client's value for a message: short, and without control characters."""
    if isinstance(value, str):
        return printable(value)
    if value is None or isinstance(value, (bool, list, dict)):
        return _KINDS[type(value)]
    return str(value)[:40]


def string_or_array(value: Any) -> Any:
    """Return a value that may be a string or an array.

    Raises:
        PydanticCustomError: it is neither; pydantic alone would only ask for an array.
    """
    if not isinstance(value, (str, list)):
        kind = _KINDS.get(type(value), "of another type")
        raise PydanticCustomError(
            "string_or_array", "is {kind}; must be a string or an array", {"kind": kind}
        )
    return value


def text_as_part(kind: str) -> Callable[[Any], Any]:
    """Return what parses content that is a string, or empty, as one part of this type."""

    def parsed(content: Any) -> Any:
        if isinstance(string_or_array(content), str) or content == []:
            return [{"type": kind, "text": content or ""}]
        return content

    return parsed


def by_type(*types: str, otherwise: str) -> Discriminator:
    """Return what picks the branch of a union that is tagged `[type]`.

    Args:
        otherwise: the branch that refuses all other types.
    """

    def tag(value: Any) -> str:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return f"[{kind if kind in types else otherwise}]"

    return Discriminator(tag)


def only(*words: str, otherwise: str) -> BeforeValidator:
    """Return a validator that refuses other words; what is no string is left to the type.

    Args:
        otherwise: the message, in which `{word}` stands for what was sent.
    """

    def checked(value: Any) -> Any:
        if isinstance(value, str) and value not in words:
            raise PydanticCustomError("word", otherwise, {"word": shown(value)})
        return value

    return BeforeValidator(checked)


def _wrong_type(kind: str, value: Any, _ctx: Mapping[str, Any], _message: str) -> str:
    found = (
        f"the number {value}"[:60] if kind == "int_from_float" else _KINDS.get(type(value), "of another type")
    )
    return f"is {found}; must be {_EXPECTED[kind]}"


def _limit(words: str, key: str) -> Callable[[str, Any, Mapping[str, Any], str], str]:
    return lambda _kind, value, ctx, _message: f"is {shown(value)}; must be {words} {_plain(ctx[key])}"


def _plain(limit: float) -> str:
    """Return a limit with all its digits: a rounded one might itself be refused."""
    return str(int(limit)) if limit == int(limit) else f"{limit:g}"


def _length(words: str, key: str, unit: str) -> Callable[[str, Any, Mapping[str, Any], str], str]:
    return lambda _kind, value, ctx, _message: f"has {len(value)} {unit}; must have {words} {ctx[key]}"


def _other(_kind: str, _value: Any, _ctx: Mapping[str, Any], message: str) -> str:
    return message


_DESCRIPTIONS: Mapping[str, Callable[[str, Any, Mapping[str, Any], str], str]] = {
    "missing": lambda *_: "is missing: send it",
    "extra_forbidden": lambda *_: "is not a known field: leave it out",
    "literal_error": lambda _kind, value, ctx, _message: f"is {shown(value)}; must be {ctx['expected']}",
    "greater_than": _limit("more than", "gt"),
    "greater_than_equal": _limit("at least", "ge"),
    "less_than": _limit("less than", "lt"),
    "less_than_equal": _limit("at most", "le"),
    "too_short": _length("at least", "min_length", "items"),
    "too_long": _length("at most", "max_length", "items"),
    "string_pattern_mismatch": lambda _kind, value, ctx, _message: (
        f"is {shown(value)}; must match {ctx['pattern']}"
    ),
    "string_too_short": _length("at least", "min_length", "characters"),
    "string_too_long": _length("at most", "max_length", "characters"),
    "finite_number": lambda *_: "is not a finite number: send one",
}
