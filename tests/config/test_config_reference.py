"""The JSON Schema and the reference table agree with the models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from vinfer.config import json_schema, reference_table
from vinfer.config.problems import known_keys

SCHEMA_FILE = Path(__file__).parents[2] / "configs/vinfer.schema.json"


def fields() -> dict[str, dict[str, Any]]:
    schema = json_schema()
    blocks = {"Config": schema, **schema["$defs"]}
    return {
        f"{block}.{name}": field for block, d in blocks.items() for name, field in d["properties"].items()
    }


def test_the_schema_file_is_current() -> None:
    expected = json.dumps(json_schema(), indent=2) + "\n"
    assert SCHEMA_FILE.read_text() == expected, "run: vinfer config schema > configs/vinfer.schema.json"


def test_every_field_has_a_description_and_a_default_or_is_required() -> None:
    schema = json_schema()
    required = {
        f"{block}.{name}"
        for block, definition in {"Config": schema, **schema["$defs"]}.items()
        for name in definition.get("required", ())
    }
    assert required == {
        "Config.models",
        "ModelConfig.name",
        "ModelConfig.source",
        "VisionConfig.height",
        "VisionConfig.width",
    }
    for name, field in fields().items():
        assert field["description"].endswith("."), name
        assert ("default" in field) != (name in required), name


def test_every_number_has_limits() -> None:
    for name, field in fields().items():
        for choice in field.get("anyOf", [field]):
            if choice.get("type") in ("integer", "number"):
                assert {"minimum", "exclusiveMinimum"} & choice.keys(), name
                assert "maximum" in choice, name


def test_the_schema_takes_one_or_a_list_where_the_loader_does() -> None:
    definitions = json_schema()["$defs"]
    entry = definitions["PrecompileConfig"]["properties"]
    vision = {"$ref": "#/$defs/VisionConfig"}
    assert entry["vision"]["anyOf"] == [
        vision,
        {"items": vision, "minItems": 1, "type": "array"},
        {"type": "null"},
    ]
    assert [choice["type"] for choice in entry["batch_size"]["anyOf"]] == ["integer", "array"]
    assert [choice["type"] for choice in entry["prefill_length"]["anyOf"]] == ["integer", "array", "null"]


def test_the_table_has_one_row_per_field() -> None:
    rows = [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in reference_table().splitlines()[2:]]
    blocks = {key.rpartition(".")[0].removesuffix("[]") for key in known_keys()}
    leaves = [key for key in known_keys() if key not in blocks]
    assert [row[0].strip("`") for row in rows] == leaves
    assert all(len(row) == 4 for row in rows)
    by_path = {row[0].strip("`"): row[1:3] for row in rows}
    assert by_path["server.port"] == ["integer, ≥ 0, ≤ 65535", "`8000`"]
    assert by_path["models[].dtype"] == ["`float32`, `bfloat16`, `float16`", "`bfloat16`"]
    assert by_path["models[].name"] == ["text", "required"]
