"""Random JSON Schemas whose answers are complete within a few hundred tokens.

Uses only keywords that vinfer enforces; those that it refuses are tested by name elsewhere.
"""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

NAMES = ("a", "b", "name", "größe", 'quoted "q"', "</s>")
PATTERNS = ("^[a-f]{2,4}$", "^(yes|no)$", "^[A-Z][a-z]{0,5}$", "^\\d{3}-\\d{2}$")
FORMATS = ("date", "time", "date-time", "ipv4", "uuid")


def random_schema(draw: random.Random, depth: int = 2) -> Schema:
    """Draw a schema nested at most `depth` deep."""
    kinds = [_boolean, _integer, _number, _string, _pattern, _format, _enum]
    if depth:
        kinds += [_object, _object, _array, _any_of]
    return draw.choice(kinds)(draw, depth)


def _boolean(draw: random.Random, depth: int) -> Schema:
    return draw.choice([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}])


def _integer(draw: random.Random, depth: int) -> Schema:
    low = draw.randrange(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + draw.choice([0, 1, 50, 5000])}


def _number(draw: random.Random, depth: int) -> Schema:
    # A number's fraction has no limit on its length.
    return draw.choice(
        [{"type": "integer", "multipleOf": 3, "minimum": 0, "maximum": 99}, {"enum": [0.5, -1, 1e3]}]
    )


def _string(draw: random.Random, depth: int) -> Schema:
    shortest = draw.randrange(4)
    return {"type": "string", "minLength": shortest, "maxLength": shortest + draw.randrange(8)}


def _pattern(draw: random.Random, depth: int) -> Schema:
    return {"type": "string", "pattern": draw.choice(PATTERNS)}


def _format(draw: random.Random, depth: int) -> Schema:
    return {"type": "string", "format": draw.choice(FORMATS)}


def _enum(draw: random.Random, depth: int) -> Schema:
    values = ["red", "grün", 'a "b"', "</s>", 1, -2.5, None, True, [1, 2], {"a": []}]
    chosen = draw.sample(values, draw.randrange(1, 5))
    return {"const": chosen[0]} if len(chosen) == 1 else {"enum": chosen}


def _object(draw: random.Random, depth: int) -> Schema:
    names = draw.sample(NAMES, draw.randrange(1, 4))
    required = [name for name in names if draw.random() < 0.7]
    return {
        "type": "object",
        "properties": {name: random_schema(draw, depth - 1) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _array(draw: random.Random, depth: int) -> Schema:
    shortest = draw.randrange(3)
    return {
        "type": "array",
        "items": random_schema(draw, depth - 1),
        "minItems": shortest,
        "maxItems": shortest + draw.randrange(3),
    }


def _any_of(draw: random.Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(draw, depth - 1) for _ in range(2)]}
