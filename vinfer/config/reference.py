"""Describes the config for people and editors: a JSON Schema and a Markdown table, both from the models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from vinfer.config.schema import Config

_TYPE_NAMES = {"boolean": "bool", "string": "text"}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a config file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}


def reference_table() -> str:
    """Return a Markdown table of every field: path, type, default, description."""
    schema = json_schema()
    rows = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for path, field, is_required in _fields(schema, schema["$defs"], ""):
        default = "required" if is_required else f"`{_default(field)}`" if "default" in field else ""
        rows.append(f"| `{path}` | {_type(field)} | {default} | {field['description']} |")
    return "\n".join(rows) + "\n"


def _fields(
    block: dict[str, Any], definitions: dict[str, Any], prefix: str
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield (path, schema, is required) of every field that is not itself a block."""
    for name, field in block["properties"].items():
        path = prefix + name
        inner = _reference(field)
        if inner is None:
            yield path, field, name in block.get("required", ())
            continue
        if any("items" in choice for choice in (field, *field.get("anyOf", ()))):
            path += "[]"
        yield from _fields(definitions[inner.removeprefix("#/$defs/")], definitions, f"{path}.")


def _reference(field: dict[str, Any]) -> str | None:
    """Return the reference to the block that a field holds, directly or in a list."""
    if "$ref" in field:
        return str(field["$ref"])
    inside = [field["items"]] if "items" in field else field.get("anyOf", [])
    return next((found for found in map(_reference, inside) if found is not None), None)


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"] if choice.get("type") != "null")
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    lower = _limit(field, "minimum", "≥ ") or _limit(field, "exclusiveMinimum", "> ")
    upper = _limit(field, "maximum", "≤ ")
    return ", ".join(part for part in (_TYPE_NAMES.get(field["type"], field["type"]), lower, upper) if part)


def _limit(field: dict[str, Any], key: str, sign: str) -> str:
    # The int32 limit only keeps arrays safe; no user needs to know it.
    return f"{sign}{field[key]}" if key in field and field[key] != 2**31 - 1 else ""


def _default(field: dict[str, Any]) -> str:
    default = field["default"]
    return default if isinstance(default, str) else json.dumps(default)
