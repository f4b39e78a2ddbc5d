"""Turns pydantic's errors into sentences: the key, its value, the limit and the next move.

Pure functions. Does not know where a key was set (file, variable, override).
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from vinfer.config.schema import Config
from vinfer.config.yaml_tree import Loc, Value

_PLAIN = re.compile(r"[\w-]{1,60}")

# Names from EasyDeL's vInference, and what they are called here.
_FORMER_NAMES = {
    "max_new_tokens": "models[].sampling.max_tokens",
    "num_return_sequences": "models[].sampling.n",
    "vision_batch_size": "models[].precompile[].vision[].batch_size",
    "vision_channels": "models[].precompile[].vision[].channels",
    "vision_height": "models[].precompile[].vision[].height",
    "vision_width": "models[].precompile[].vision[].width",
    "vision_included": "models[].precompile[].vision",
    "sharding_axis_dims": "models[].mesh",
    "sampling_params": "models[].sampling",
    "inference_name": "models[].name",
}

_LIMITS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "int_type": "expected an integer",
    "int_from_float": "expected an integer",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "path_type": "expected a path",
    "tuple_type": "expected a list",
    "model_type": "expected a block of keys",
}


class Problem(NamedTuple):
    """A path and what is wrong with it (`is 6; ...`, without a subject)."""

    loc: Loc
    text: str


def describe(error: ValidationError, values: Value) -> Iterator[Problem]:
    """Yield the problems of a failed validation of `values` as sentences."""
    for details in error.errors(include_url=False):
        for suffix, text in details.get("ctx", {}).get("problems", ()):
            yield Problem(_as_written((*details["loc"], *suffix), values), text)
        # Pydantic also reports a list as too short if its entries failed.
        is_echo = details["type"] == "too_short" and details["input"]
        if details["type"] != "config" and not is_echo:
            loc = _as_written(details["loc"], values)
            yield Problem(loc, _text(details, loc))


def render_loc(loc: Loc) -> str:
    """Return a path as `models[0].num_slots`; keys that are not plain words are quoted and shortened."""
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part if _PLAIN.fullmatch(part) else repr(part[:60])}"
        for part in loc
    ).removeprefix(".")


def known_keys() -> tuple[str, ...]:
    """Return every key of a config file, outer before inner: `server`, `server.host`, `models[].name`."""
    return tuple(_keys_of(Config, ""))


def _keys_of(block: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in block.model_fields.items():
        inner, is_list = _inner_block(field.annotation)
        yield prefix + name
        if inner is not None:
            yield from _keys_of(inner, f"{prefix}{name}{'[]' if is_list else ''}.")


def _inner_block(annotation: object) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    is_list = typing.get_origin(annotation) is tuple
    for argument in typing.get_args(annotation):
        inner, is_inner_list = _inner_block(argument)
        if inner is not None:
            return inner, is_list or is_inner_list
    return None, False


def _as_written(loc: Loc, values: Value) -> Loc:
    """Remove indices that the schema added: `batch_size: 4` is checked as `[4]`."""
    here: Value = values
    written: list[str | int] = []
    for part in loc:
        if isinstance(part, int) and not isinstance(here, list):
            continue
        written.append(part)
        if isinstance(here, list) and isinstance(part, int):
            here = here[part] if part < len(here) else None
        else:
            here = here.get(str(part)) if isinstance(here, dict) else None
    return tuple(written)


def _text(details: ErrorDetails, loc: Loc) -> str:
    kind = details["type"]
    value = details["input"]
    context = details.get("ctx", {})
    if kind == "missing":
        return f"is missing: add it under {render_loc(loc[:-1]) or 'the top level'}"
    if kind == "extra_forbidden":
        return f"is not a known key: {_suggest(loc)}"
    if kind == "literal_error":
        allowed = re.findall(r"'([^']+)'", context["expected"])
        close = difflib.get_close_matches(str(value).lower(), allowed, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"is {_show(value)}; allowed values: {', '.join(allowed)}{hint}"
    if kind in ("too_short", "string_too_short"):
        return "is empty: fill it in or leave it out"
    limit = _LIMITS[kind].format(**context).removesuffix(".0") if kind in _LIMITS else details["msg"]
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        limit += ": put it in quotes"
    if value is None:
        limit += ": fill it in or leave it out"
    return f"is {_show(value)}; {limit}"


def _show(value: object) -> str:
    match value:
        case None:
            return "empty"
        case bool():
            return str(value).lower()
        case dict():
            return "a block of keys"
        case list():
            return "a list"
    try:
        text = repr(value)
    except ValueError:
        return "a very long number"
    return text if len(text) <= 60 else text[:57] + "..."


def _suggest(loc: Loc) -> str:
    """Return a hint at the intended key: a misspelled sibling, or the same name in another block."""
    key = str(loc[-1]).lower().replace("-", "_")
    parent = tuple(part for part in loc[:-1] if isinstance(part, str))
    by_names = {tuple(re.findall(r"\w+", template)): template for template in known_keys()}
    siblings = [names[-1] for names in by_names if names[:-1] == parent]
    if key in siblings:
        return f"did you mean {key}?"
    if key in _FORMER_NAMES:
        return f"it is {_fill_in(_FORMER_NAMES[key], loc)} here"

    def elsewhere(name: str) -> str:
        homes = [names for names in by_names if names[-1] == name]
        nearest = max(homes, key=lambda names: (_num_shared(names, parent), -len(names)))
        return f"did you mean {_fill_in(by_names[nearest], loc)}?"

    last_names = sorted({names[-1] for names in by_names})
    if key in last_names:
        return elsewhere(key)
    if close := difflib.get_close_matches(key, siblings, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    if close := difflib.get_close_matches(key, last_names, n=1, cutoff=0.75):
        return elsewhere(close[0])
    return f"known keys here: {', '.join(siblings)}"


def _num_shared(names: tuple[str, ...], parent: tuple[str, ...]) -> int:
    """Count the outermost blocks that two paths have in common."""
    equal = [a == b for a, b in zip(names, parent, strict=False)]
    return [*equal, False].index(False)


def _fill_in(template: str, loc: Loc) -> str:
    """Fill the indices of `loc` into `models[].sampling.n` as far as both go through the same blocks."""
    filled = template.split(".")
    for i, (segment, actual) in enumerate(zip(filled, render_loc(loc).split("."), strict=False)):
        if re.sub(r"\[\d+\]", "", actual) != segment.removesuffix("[]"):
            break
        filled[i] = actual
    return ".".join(filled)
