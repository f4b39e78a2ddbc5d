"""Requests of the Messages API and their answers, for every test of that route."""

from __future__ import annotations

import json
from typing import Any

from fake_engine import EOS, ids_of
from running_server import RunningServer

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
HI = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": HI, "max_tokens": 500, **fields}


def post(server: RunningServer, **fields: Any) -> Any:
    return server.http.post("/v1/messages", json=body(**fields))


def answered(server: RunningServer, **fields: Any) -> dict[str, Any]:
    response = post(server, **fields)
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()
    return message


def named_events(text: str) -> list[dict[str, Any]]:
    """Parse a stream, whose events must be named after their types."""
    found = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n", 1)
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def streamed(server: RunningServer, **fields: Any) -> list[dict[str, Any]]:
    response = post(server, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    return named_events(response.text)


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Fold a stream as clients do, and check the order of its events."""
    start, *middle, last_delta, stop = events
    assert (start["type"], last_delta["type"], stop) == (
        "message_start",
        "message_delta",
        {"type": "message_stop"},
    )
    message: dict[str, Any] = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    open_index = None
    arguments = ""
    for event in middle:
        if event["type"] == "content_block_start":
            assert open_index is None
            open_index = event["index"]
            assert open_index == len(message["content"])
            message["content"].append(event["content_block"])
            arguments = ""
            continue
        assert event["index"] == open_index
        block = message["content"][-1]
        if event["type"] == "content_block_stop":
            open_index = None
            if arguments:
                block["input"] = json.loads(arguments)
            continue
        delta = dict(event["delta"])
        kind = delta.pop("type")
        ((key, text),) = delta.items()
        if kind == "input_json_delta":
            arguments += text
        else:
            block[key] += text
    assert open_index is None
    return {**message, **last_delta["delta"], "usage": last_delta["usage"]}


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    blocks = [{key: value for key, value in block.items() if key != "id"} for block in message["content"]]
    return {**message, "id": "", "content": blocks}


def say(server: RunningServer, text: str, **fields: Any) -> dict[str, Any]:
    """Make the model say something, whole and streamed; both must be the same message."""
    server.engine.script = [*ids_of(text), EOS]
    whole = answered(server, **fields)
    for tokens_per_event in (1, 7, 500):
        server.engine.tokens_per_event = tokens_per_event
        server.engine.requests.clear()
        assert without_ids(folded(streamed(server, **fields))) == without_ids(whole)
    return whole
