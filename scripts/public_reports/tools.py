"""Reports about tools: what a call contains, whole and streamed, and what clients offer as tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jsonschema

from public_reports.constrained import TEXT, ZOD_EMAIL, closed
from public_reports.report import Report
from public_reports.server import Server, answered, choice, events, refused

CITY = closed({"city": TEXT})
NAMED = {"type": "function", "function": {"name": "f"}}


def tool(parameters: dict[str, Any] | None, name: str = "f") -> dict[str, Any]:
    function: dict[str, Any] = {"name": name, "description": "Get it."}
    return {
        "type": "function",
        "function": function if parameters is None else {**function, "parameters": parameters},
    }


def called(server: Server, parameters: dict[str, Any] | None, tool_choice: Any) -> str:
    """Require a call, whole and streamed; check both against the schema, and return the arguments."""
    asked = {"tools": [tool(parameters)], "tool_choice": tool_choice, "max_tokens": 200}
    asked["parallel_tool_calls"] = False
    (whole,) = choice(server.chat(**asked))["message"]["tool_calls"]
    pieces = [
        call
        for event in events(server.chat(**asked, stream=True))
        for call in event["choices"][0]["delta"].get("tool_calls") or ()
    ]
    first, *rest = pieces
    assert first["function"]["name"] == "f"
    assert not any("name" in piece["function"] or "id" in piece for piece in rest)
    arguments = "".join(piece["function"].get("arguments") or "" for piece in pieces)
    assert arguments == whole["function"]["arguments"]
    jsonschema.validate(json.loads(arguments), parameters or {"type": "object"})
    return arguments


def required(parameters: dict[str, Any] | None, tool_choice: Any = "required") -> Callable[[Server], str]:
    return lambda server: f"the arguments, whole and streamed: {called(server, parameters, tool_choice)}"


def offered(parameters: dict[str, Any]) -> Callable[[Server], str]:
    """Return a check that a tool with a schema can be offered."""

    def check(server: Server) -> str:
        assert choice(server.chat(tools=[tool(parameters)]))["finish_reason"] in (
            "stop",
            "length",
            "tool_calls",
        )
        return "200: a tool that may be called is not compiled"

    return check


def lookaheads(server: Server) -> str:
    email = closed({"to": {**TEXT, "format": "email", "pattern": ZOD_EMAIL}})
    offered(email)(server)
    words = refused(server.chat(tools=[tool(email)], tool_choice="required"), "look-around")
    return f"200 if it may be called; if it must be: {words}"


def two_calls(server: Server) -> str:
    asked: dict[str, Any] = {
        "tools": [tool(CITY), tool(CITY, "g")],
        "tool_choice": "required",
        "max_tokens": 120,
    }
    whole = choice(server.chat(**asked))["message"]["tool_calls"]
    streamed: dict[int, list[str]] = {}
    for event in events(server.chat(**asked, stream=True)):
        for call in event["choices"][0]["delta"].get("tool_calls") or ():
            name, arguments = streamed.setdefault(call["index"], ["", ""])
            function = call["function"]
            streamed[call["index"]] = [name + function.get("name", ""), arguments + function["arguments"]]
    assert [[call["function"]["name"], call["function"]["arguments"]] for call in whole] == list(
        streamed.values()
    )
    assert all(json.loads(arguments) for _, arguments in streamed.values())
    return f"{len(whole)} calls, streamed as whole: {list(streamed.values())}"


def second_turn(server: Server) -> str:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Paris"}'}}
    turns = [
        {"role": "user", "content": "Look for it."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    turns += [{"role": "tool", "tool_call_id": "call_1", "content": "Error: no such file"}]
    streamed = events(server.chat(messages=turns, tools=[tool(CITY)], stream=True))
    whole = choice(server.chat(messages=turns, tools=[tool(CITY)]))
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in streamed)
    assert text == (whole["message"]["content"] or "")
    assert streamed[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    return "200, streamed as whole"


def image_in_result(server: Server) -> str:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "https://example.com/image.png"}}
    turns = [{"role": "user", "content": "Look."}, {"role": "assistant", "tool_calls": [call]}]
    turns += [{"role": "tool", "tool_call_id": "c", "content": [image]}]
    return refused(server.chat(messages=turns), "images belong to user messages")


def image_in_system(server: Server) -> str:
    part = {"type": "image_url", "image_url": {"url": "some_url"}}
    return refused(
        server.chat(messages=[{"role": "system", "content": [part]}]), "images belong to user messages"
    )


def other_tools(server: Server) -> str:
    kinds = ("namespace", "web_search", "custom", "local_shell")
    for kind in kinds:
        refused(server.respond(tools=[{"type": kind, "name": "x"}]), f"tools[0].type is '{kind}'")
    return refused(server.respond(tools=[{"type": "namespace", "name": "x"}]), "describe a tool of yours")


def text_output(server: Server) -> str:
    items = [{"role": "user", "content": "hi"}, {"type": "function_call", "call_id": "c", "name": "f"}]
    items += [
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "output_text", "text": "42"}]}
    ]
    assert answered(server.respond(input=items))["usage"]["input_tokens"] > 30
    return "200: input_text and output_text are both text"


def image_output(server: Server) -> str:
    items = [{"role": "user", "content": "hi"}, {"type": "function_call", "call_id": "c", "name": "f"}]
    part = {"type": "input_image", "image_url": "data:image/png;base64,aGk="}
    items += [{"type": "function_call_output", "call_id": "c", "output": [part]}]
    return "taken, if the model takes images; here " + refused(server.respond(input=items), "takes only text")


NO_ARGUMENTS = closed({})
LARGE = closed({"a": {**TEXT, "maxLength": 65536}, "b": {"type": "array", "items": TEXT, "maxItems": 10000}})
UNTYPED = {
    "type": "object",
    "properties": {"a": {"description": "anything"}, "w": {"anyOf": [{"type": "number"}]}},
}

REPORTS = (
    Report(
        "ai-dynamo/dynamo#13789",
        "a named tool without parameters: white space until max_tokens",
        "the report's request",
        required(NO_ARGUMENTS, NAMED),
    ),
    Report(
        "langchain-ai/langchainjs#8518",
        "a call without parameters has no arguments in a stream",
        "a tool without `parameters`",
        required(None),
    ),
    Report(
        "vllm-project/vllm#16321",
        "400 for `required` with the documentation's tool",
        "a tool",
        required(CITY),
    ),
    Report(
        "vllm-project/vllm#13078",
        "a named tool's arguments are any text",
        "a named tool",
        required(CITY, NAMED),
    ),
    Report(
        "vllm-project/vllm#9693",
        "arguments are null in a stream",
        "two integers",
        required(closed({"n1": {"type": "integer"}, "n2": {"type": "integer"}})),
    ),
    Report(
        "vllm-project/vllm#16880",
        "400 for `minItems` in a tool",
        "the same",
        required(closed({"a": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2}})),
    ),
    Report(
        "containers/kubernetes-mcp-server#758",
        "400 for a pattern without anchors",
        "the same",
        required(closed({"a": {**TEXT, "pattern": "[a-z]+", "maxLength": 20}})),
    ),
    Report(
        "codefuturist/email-mcp#58",
        "one pattern with look-ahead (zod's email) stops every tool",
        "the same pattern",
        lookaheads,
    ),
    Report("unslothai/unsloth#7512", "400 for `maxLength: 65536` in a tool", "the same", offered(LARGE)),
    Report(
        "ggml-org/llama.cpp#14227", "a property without a type: an exception", "the same", required(UNTYPED)
    ),
    Report(
        "lmstudio-ai/lmstudio-bug-tracker#759",
        "several calls in a stream are mixed up",
        "two tools, required",
        two_calls,
    ),
    Report(
        "lmstudio-ai/lmstudio-bug-tracker#649",
        "later pieces of a call have an empty name",
        "the names and ids of all pieces",
        required(CITY),
    ),
    Report(
        "lmstudio-ai/lmstudio-bug-tracker#1066",
        "no proper answer in a stream after the result of a tool",
        "the second turn, with a failed call",
        second_turn,
    ),
    Report(
        "lmstudio-ai/lmstudio-bug-tracker#1810",
        "Codex's tools of type `namespace` are invalid",
        "four types that are no functions",
        other_tools,
        "left",
        "only the client knows what is behind such a type, and nothing that it offers is dropped silently; "
        "the message says what to send",
    ),
    Report(
        "vllm-project/vllm#43203",
        "an image in a message of role tool is refused",
        "the same",
        image_in_result,
        "left",
        "OpenAI's chat route has only text there; /v1/responses and /v1/messages take images in results",
    ),
    Report(
        "vllm-project/vllm#33925",
        "an image in a system message is accepted and dropped",
        "the same",
        image_in_system,
    ),
    Report(
        "ggml-org/llama.cpp#23553", "`output_text` in a function's output is refused", "the same", text_output
    ),
    Report(
        "ggml-org/llama.cpp#23380",
        "Codex shows an image, and its output is refused",
        "`input_image` in a function's output",
        image_output,
        "mended",
        "was a 400 for every model; tests/server/routes/test_images_of_functions.py",
    ),
)
