"""What a 400 says where clients of other servers go wrong: the value, and what vinfer takes instead."""

from __future__ import annotations

from typing import Any

import pytest
from refusals import TOOL_CALL, USER, assert_refused
from running_server import RunningServer
from tool_requests import function

FORM = {"name": "x", "schema": {"type": "object"}}


@pytest.mark.parametrize("choice", ["any", "Auto", {"type": "auto"}, {"type": "function", "name": "f"}, 1])
def test_a_choice_of_other_apis(server: RunningServer, choice: Any) -> None:
    response = server.chat(tools=[function("f", {"type": "object"})], tool_choice=choice)
    assert_refused(response, "tool_choice", 'required or {"type": "function", "function": {"name": ...}}')
    body = {"model": "fake", "input": "hi", "tool_choice": {"type": "auto"}}
    response = server.http.post("/v1/responses", json=body)
    assert_refused(response, "tool_choice", 'required or {"type": "function", "name": ...}')


@pytest.mark.parametrize("kind", ["custom", "namespace", "web_search", "local_shell", "mcp"])
def test_tools_of_openais_server(server: RunningServer, kind: str) -> None:
    words = (
        f"is '{kind}', which only OpenAI's own server runs or reads: describe a tool of yours as a function"
    )
    assert_refused(server.chat(tools=[{"type": kind, kind: {}}]), "tools[0].type", words)
    body = {"model": "fake", "input": "hi", "tools": [{"type": kind, "name": "f"}]}
    assert_refused(server.http.post("/v1/responses", json=body), "tools[0].type", words)


def test_names(server: RunningServer) -> None:
    for name in ("mcp.server/tool", "a b", "工具", "", "n" * 129):
        response = server.chat(tools=[function(name, {"type": "object"})])
        assert_refused(response, "tools[0].function.name", "must match ^[a-zA-Z0-9_-]{1,128}$")


@pytest.mark.parametrize("value", [3, True, {"a": 1}])
def test_texts_or_arrays(server: RunningServer, value: Any) -> None:
    words = "must be a string or an array"
    assistant = {"role": "assistant", "tool_calls": [TOOL_CALL]}
    result = {"role": "tool", "tool_call_id": "c", "content": value}
    assert_refused(server.chat(messages=[{**USER, "content": value}]), "messages[0].content", words)
    assert_refused(server.chat(messages=[USER, assistant, result]), "messages[2].content", words)
    assert_refused(server.chat(stop=value), "stop", words)
    output = {"type": "function_call_output", "call_id": "c", "output": value}
    response = server.http.post("/v1/responses", json={"model": "fake", "input": [output]})
    assert_refused(response, "input[0].output", words)
    block = {"type": "tool_result", "tool_use_id": "c", "content": value}
    body = {"model": "fake", "max_tokens": 3, "messages": [{"role": "user", "content": [block]}]}
    response = server.http.post("/v1/messages", json=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


def test_a_schema_where_llama_cpp_reads_it(server: RunningServer) -> None:
    for form in ({"type": "json_object", "schema": FORM["schema"]}, {"type": "json_schema", **FORM}):
        form.pop("name", None)
        response = server.chat(response_format=form)
        assert_refused(response, "response_format.schema", "use type json_schema, and json_schema.schema")


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({"top_logprobs": 0}, {"top_logprobs": 1}),
        ({"top_logprobs": 0, "logprobs": False}, {"top_logprobs": 1, "logprobs": False}),
        ({"stream_options": {}}, {"stream_options": {"include_usage": True}}),
        (
            {"stream_options": {"include_usage": False}, "stream": False},
            {"stream_options": {"continuous_usage_stats": True}},
        ),
    ],
)
def test_an_option_that_asks_for_nothing_needs_nothing(
    server: RunningServer, fields: dict[str, Any], needs: dict[str, Any]
) -> None:
    plain = server.chat().json()["choices"]
    response = server.chat(**fields)
    assert response.status_code == 200, response.text
    assert response.json()["choices"] == plain
    assert_refused(server.chat(**needs), next(iter(needs)), "needs")
