"""anthropic-python over `/v1/messages`, which validates every answer and event against its own types.

python -m client_runs.programs.anthropic_python URL
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import anthropic
from anthropic import Anthropic

from client_runs.pictures import MODEL as PICTURES
from client_runs.pictures import read_picture
from client_runs.questions import (
    CITY_REQUEST,
    MESSAGES,
    WEATHER_MESSAGES,
    WEATHER_NAME,
    WEATHER_RESULT,
    WEATHER_SCHEMA,
    WEATHER_TOOL,
    City,
    expect_weather_call,
)
from client_runs.raw import MODEL, RawServer
from client_runs.rows import expect_equal, run_checks

# This version of the client has no parameter for the temperature.
GREEDY: Any = {"model": MODEL, "max_tokens": 200, "extra_body": {"temperature": 0}}
TOOL: Any = {
    "name": WEATHER_NAME,
    "description": WEATHER_TOOL["function"]["description"],
    "input_schema": WEATHER_SCHEMA,
}
NAMED: Any = {"type": "tool", "name": WEATHER_NAME, "disable_parallel_tool_use": True}
NAMED_IN_CHAT: Any = {"type": "function", "function": {"name": WEATHER_NAME}}


def text_of(message: Any) -> str:
    (block,) = message.content
    expect_equal(block.type, "text")
    return str(block.text)


def whole(client: Anthropic, raw: RawServer) -> str:
    message = client.messages.create(**GREEDY, messages=MESSAGES)
    expected = raw.chat(messages=MESSAGES)["message"]["content"]
    expect_equal(text_of(message), expected)
    expect_equal(message.stop_reason, "end_turn")
    return expected


def streamed(client: Anthropic, raw: RawServer) -> str:
    with client.messages.stream(**GREEDY, messages=MESSAGES) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    expect_equal("".join(pieces), raw.chat(messages=MESSAGES)["message"]["content"])
    expect_equal(text_of(message), "".join(pieces))
    expected = raw.post("/v1/chat/completions", temperature=0, messages=MESSAGES)["usage"]
    expect_equal(message.usage.output_tokens, expected["completion_tokens"])
    read = message.usage.cache_read_input_tokens or 0
    expect_equal(message.usage.input_tokens + read, expected["prompt_tokens"])
    return f"{len(pieces)} pieces, usage in the last event"


def system_and_stop(client: Anthropic, raw: RawServer) -> str:
    system: Any = [{"type": "text", "text": "Answer in one word.", "cache_control": {"type": "ephemeral"}}]
    asked: Any = {"messages": MESSAGES, "system": system, "stop_sequences": [" of"]}
    message = client.messages.create(**GREEDY, **asked)
    turns = [{"role": "system", "content": "Answer in one word."}, *MESSAGES]
    expected = raw.chat(messages=turns, stop=[" of"])["message"]["content"]
    expect_equal(text_of(message), expected)
    return f"{message.stop_reason}: {expected[:60]}"


def tools(client: Anthropic, raw: RawServer) -> str:
    asked: Any = {"messages": WEATHER_MESSAGES, "tools": [TOOL], "tool_choice": NAMED}
    expected = raw.chat(messages=WEATHER_MESSAGES, tools=[WEATHER_TOOL], tool_choice=NAMED_IN_CHAT)
    (call,) = expected["message"]["tool_calls"]
    with client.messages.stream(**GREEDY, **asked) as stream:
        final = stream.get_final_message()
    for message in (client.messages.create(**GREEDY, **asked), final):
        (block,) = message.content
        assert block.type == "tool_use"
        expect_weather_call(block.name, block.input)
        expect_equal(block.input, json.loads(call["function"]["arguments"]))
        expect_equal(message.stop_reason, "tool_use")
    return call["function"]["arguments"]


def tool_round_trip(client: Anthropic, raw: RawServer) -> str:
    asked: Any = {**GREEDY, "tools": [TOOL], "max_tokens": 60}
    first = client.messages.create(**asked, messages=WEATHER_MESSAGES, tool_choice=NAMED)
    (call,) = first.content
    assert call.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": WEATHER_RESULT}
    turns: Any = [
        *WEATHER_MESSAGES,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    second = client.messages.create(**asked, messages=turns, tool_choice={"type": "none"})
    function = {"name": call.name, "arguments": json.dumps(call.input)}
    in_chat = [
        *WEATHER_MESSAGES,
        {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": call.id, "content": WEATHER_RESULT},
    ]
    expected = raw.chat(messages=in_chat, tools=[WEATHER_TOOL], tool_choice="none", max_tokens=60)
    expect_equal(text_of(second), expected["message"]["content"])
    return json.dumps(text_of(second)[:60])


def parse(client: Anthropic, raw: RawServer) -> str:
    del raw
    messages: Any = [{"role": "user", "content": CITY_REQUEST}]
    message = client.messages.parse(**GREEDY, messages=messages, output_format=City)
    assert isinstance(message.parsed_output, City)
    return repr(message.parsed_output)


def count_tokens(client: Anthropic, raw: RawServer) -> str:
    counted = client.messages.count_tokens(model=MODEL, messages=MESSAGES).input_tokens
    expect_equal(counted, raw.post("/v1/count_tokens", conversation=MESSAGES)["count"])
    return f"{counted} tokens"


def image_named(client: Anthropic, raw: RawServer) -> str:
    del raw
    picture = read_picture()
    assert picture is not None
    source = {"type": "base64", "media_type": "image/png", "data": picture["png"]}
    content = [{"type": "image", "source": source}, {"type": "text", "text": picture["question"]}]
    turns: Any = [{"role": "user", "content": content}]
    asked: Any = {**GREEDY, "model": PICTURES, "max_tokens": 12}
    message = client.with_options(base_url=picture["url"]).messages.create(**asked, messages=turns)
    expect_equal(text_of(message), picture["colour"])
    return str(picture["colour"])


def image(client: Anthropic, raw: RawServer) -> str:
    """Send an image to a model that takes only text: the error is the client's own."""
    del raw
    source = {"type": "base64", "media_type": "image/png", "data": "aGk="}
    turns: Any = [{"role": "user", "content": [{"type": "image", "source": source}]}]
    try:
        client.messages.create(**GREEDY, messages=turns)
    except anthropic.BadRequestError as error:
        expect_equal(error.type, "invalid_request_error")
        expect_equal("takes only text" in str(error), True)
        return f"BadRequestError, {error.type}"
    raise AssertionError("an image was not refused")


def unknown_model(client: Anthropic, raw: RawServer) -> str:
    del raw
    try:
        client.messages.create(model="claude", max_tokens=5, messages=MESSAGES)
    except anthropic.NotFoundError as error:
        expect_equal(error.type, "not_found_error")
        return f"NotFoundError, {error.type}"
    raise AssertionError("an unknown model was not refused")


CHECKS: dict[str, Callable[[Anthropic, RawServer], str]] = {
    "`messages.create`": whole,
    "`messages.stream`": streamed,
    "system blocks and stop sequences": system_and_stop,
    "a tool by name, whole and streamed": tools,
    "messages, tool round trip": tool_round_trip,
    "`messages.parse` with a pydantic model": parse,
    "`messages.count_tokens`": count_tokens,
    **({"an image is named": image_named} if read_picture() else {}),
    "an image for a model without": image,
    "an unknown model": unknown_model,
}


def main(url: str) -> None:
    with Anthropic(base_url=url, api_key="unused", max_retries=0, _strict_response_validation=True) as client:
        run_checks("anthropic", CHECKS, client, RawServer(url))


if __name__ == "__main__":
    main(sys.argv[1])
