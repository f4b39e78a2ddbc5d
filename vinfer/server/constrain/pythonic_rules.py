"""Lark rules for a call's arguments in Python's form: `city="Oslo", days=2)`, each constrained by its schema.

Values are JSON, which `vinfer.text.tool_calls.pythonic_call` reads as Python literals. Pure functions.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Sequence
from typing import Any

from vinfer.engine.grammar import JSON_FORM

_DEFINITIONS = ("$defs", "definitions")
# A schema with any other keyword says more than which properties there are.
_PLAIN = frozenset(
    (
        "type",
        "properties",
        "required",
        "additionalProperties",
        "title",
        "description",
        "$schema",
        "x-guidance",
    )
)
_FREE = '("=" %json {"x-guidance": ' + json.dumps(JSON_FORM) + "})"


def pythonic_rules(schema: str, suffix: str) -> list[str] | None:
    """Write the rule `keywords_<suffix>`: keyword arguments and the closing parenthesis.

    Args:
        schema: JSON Schema of the arguments, which are an object.

    Returns:
        None if the object cannot be written as keyword arguments: its schema composes others, or a
        required property's name is not valid in Python.
    """
    root = json.loads(schema)
    properties, required = root.get("properties", {}), root.get("required", [])
    if root.keys() - _PLAIN - set(_DEFINITIONS):
        return None
    if "properties" not in root:
        name = f"NAME_{suffix}"
        return [
            f"{name}: /[A-Za-z_][A-Za-z0-9_]*/",
            f'keywords_{suffix}: ({name} {_FREE} (", " {name} {_FREE})*)? ")"',
        ]
    names = [name for name in properties if name.isidentifier() and not keyword.iskeyword(name)]
    if root.get("additionalProperties") is not False or not set(required) <= set(names):
        return None
    shared = {key: root[key] for key in _DEFINITIONS if key in root}
    return _in_order(suffix, names, [_value(properties[name], shared) for name in names], required)


def _value(part: Any, shared: dict[str, Any]) -> str:
    own = part if isinstance(part, dict) else ({} if part else {"enum": []})
    return json.dumps({**shared, **own, "x-guidance": JSON_FORM}, ensure_ascii=False)


def _in_order(suffix: str, names: Sequence[str], values: Sequence[str], required: Sequence[str]) -> list[str]:
    """Write keywords in the order of the schema; optional ones may be left out.

    `first_<i>` means all from the i-th on if none has been written yet, `more_<i>` if one has.
    """
    lines = [f'keywords_{suffix}: first_{suffix}_0 ")"']
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        item = f"{json.dumps(name + '=')} value_{suffix}_{i} more_{suffix}_{i + 1}"
        skip = ("", "") if name in required else (f" | first_{suffix}_{i + 1}", f" | more_{suffix}_{i + 1}")
        lines += [
            f"first_{suffix}_{i}: {item}{skip[0]}",
            f'more_{suffix}_{i}: ", " {item}{skip[1]}',
            f"value_{suffix}_{i}: %json {value}",
        ]
    end = len(names)
    return [*lines, f'first_{suffix}_{end}: ""', f'more_{suffix}_{end}: ""']
