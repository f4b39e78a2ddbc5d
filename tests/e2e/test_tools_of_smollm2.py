"""Tools with the real small model, through openai-python: constrained calls satisfy their schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from server_process import MODEL, ServerProcess

WEATHER_SCHEMA: Any = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
# Limited, because at a high temperature an unlimited number grows until max_tokens cuts it off.
TERM = {"type": "integer", "minimum": 0, "maximum": 999}
ADD_SCHEMA: Any = {
    "type": "object",
    "properties": {"terms": {"type": "array", "items": TERM, "minItems": 2, "maxItems": 3}},
    "required": ["terms"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER_SCHEMA, "add": ADD_SCHEMA}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": name, "description": about, "parameters": SCHEMAS[name]},
    }
    for name, about in (("get_weather", "Weather forecast of a city"), ("add", "Add numbers"))
]
QUESTION: Any = [{"role": "user", "content": "How is the weather in Paris?"}]
NAMED: Any = {"type": "function", "function": {"name": "add"}}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def assert_valid(message: Any) -> list[str]:
    """Assert that every call satisfies its schema; return the names."""
    assert message.tool_calls
    for call in message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
    return [call.function.name for call in message.tool_calls]


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_constrained_calls_are_valid(client: openai.OpenAI, choice: Any, temperature: float) -> None:
    """Whole, with several choices, and streamed; at a high temperature a free answer would be noise."""
    fields: Any = {
        "model": MODEL,
        "messages": QUESTION,
        "tools": TOOLS,
        "tool_choice": choice,
        "temperature": temperature,
        "seed": 1,
        "parallel_tool_calls": False,
        "max_tokens": 200,
    }
    whole = client.chat.completions.create(**fields, n=4)
    for answer in whole.choices:
        names = assert_valid(answer.message)
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        assert len(names) == 1
        assert choice == "required" or names == ["add"]
    with client.chat.completions.stream(**fields) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert_valid(streamed.message)
    assert streamed.message.tool_calls is not None
    assert whole.choices[0].message.tool_calls is not None
    assert (
        streamed.message.tool_calls[0].function.arguments
        == whole.choices[0].message.tool_calls[0].function.arguments
    )


def test_a_round_trip(client: openai.OpenAI) -> None:
    """The model calls a tool, receives the result, and reports it."""
    first = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS[:1], tool_choice="required", temperature=0, max_tokens=300
    )
    assert first.choices[0].message.tool_calls is not None
    assert_valid(first.choices[0].message)
    results: list[Any] = [
        {"role": "tool", "tool_call_id": call.id, "content": "It will be sunny."}
        for call in first.choices[0].message.tool_calls
    ]
    messages: Any = [*QUESTION, first.choices[0].message.model_dump(exclude_none=True), *results]
    second = client.chat.completions.create(
        model=MODEL, messages=messages, tools=TOOLS[:1], tool_choice="none", temperature=0, max_tokens=40
    )
    assert second.choices[0].message.content
    assert second.usage is not None
    assert first.usage is not None
    # It saw the call and its result instead of the tools.
    without = client.chat.completions.create(
        model=MODEL, messages=QUESTION, tools=TOOLS[:1], tool_choice="none", temperature=0, max_tokens=1
    )
    assert without.usage is not None
    assert second.usage.prompt_tokens > without.usage.prompt_tokens + 20


def test_a_round_trip_of_items(client: openai.OpenAI) -> None:
    """`/v1/responses`: the answer's own items and the function's result are sent back as input."""
    items: list[Any] = list(QUESTION)
    asked: Any = {
        "model": MODEL,
        "tools": [{"type": "function", **tool["function"]} for tool in TOOLS],
        "temperature": 0,
    }
    named = {"type": "function", "name": "get_weather"}
    first = client.responses.create(**asked, input=items, tool_choice=named, max_output_tokens=200)
    (call,) = first.output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), WEATHER_SCHEMA)
    returned = {"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees, sunny"}
    items += [call, returned]
    second = client.responses.create(**asked, input=items, max_output_tokens=40)
    assert second.output
    assert second.usage is not None
    assert first.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens


STRICT: Any = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]


def test_text_of_strict_tools_is_what_it_is_without(client: openai.OpenAI) -> None:
    """The model makes no call on its own, so no token differs."""
    for content in ("Write two sentences about the sea.", "How is the weather in Paris?"):
        asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0}
        free, constrained = (
            client.chat.completions.create(**asked, tools=tools, tool_choice="auto", max_tokens=40)
            for tools in (TOOLS, STRICT)
        )
        assert free.choices[0].message.content
        assert constrained.choices[0].message == free.choices[0].message


def test_calls_that_the_model_makes_of_strict_tools_are_valid(client: openai.OpenAI) -> None:
    """After three examples it makes a call, and without `strict` it writes a unit that does not exist."""
    messages: Any = []
    for days, city in enumerate(("Lima", "Rome", "Oslo"), 1):
        arguments = json.dumps({"city": city, "days": days, "unit": "celsius"})
        function = {"name": "get_weather", "arguments": arguments}
        messages += [
            {"role": "user", "content": f"How is the weather in {city}?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": city, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": city, "content": "sunny"},
            {"role": "assistant", "content": "Sunny."},
        ]
    asked: Any = {
        "model": MODEL,
        "messages": messages + QUESTION,
        "tools": STRICT,
        "tool_choice": "auto",
        "temperature": 1.0,
        "seed": 3,
        "max_tokens": 150,
    }
    called = [
        answer.message
        for answer in client.chat.completions.create(**asked, n=4).choices
        if answer.finish_reason == "tool_calls"
    ]
    assert called
    for message in called:
        assert_valid(message)
