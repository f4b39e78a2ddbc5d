"""Inputs of the Python clients: a question, a tool with its schema and result, and a type to fill in."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pydantic

QUESTION = "What is the capital of France?"
MESSAGES: Any = [{"role": "user", "content": QUESTION}]

WEATHER_QUESTION = "How is the weather in Paris?"
WEATHER_MESSAGES: Any = [{"role": "user", "content": WEATHER_QUESTION}]
WEATHER_RESULT = "22 degrees and sunny"
WEATHER_NAME = "get_weather"
WEATHER_SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
}
WEATHER_TOOL: Any = {
    "type": "function",
    "function": {
        "name": WEATHER_NAME,
        "description": "Weather forecast of a city.",
        "parameters": WEATHER_SCHEMA,
    },
}

CITY_REQUEST = "Describe Paris."


class City(pydantic.BaseModel):
    """A city."""

    name: str
    country: str
    population: int


def expect_weather_call(name: str, arguments: Any) -> None:
    """Check that a call is to the weather tool and satisfies its schema.

    Args:
        arguments: as JSON text, or already parsed.
    """
    assert name == WEATHER_NAME, f"called {name!r}"
    jsonschema.validate(json.loads(arguments) if isinstance(arguments, str) else arguments, WEATHER_SCHEMA)
