"""The fields of the Messages API: blocks become chat messages, and bad ones are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from contract import Contract
from fake_engine import FakeEngine, served_model
from messages_requests import HI, TOOL, body, post
from running_server import RunningServer, Start, run

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer

# Shows everything that a message can contain; images appear as they are written.
FULL_TEMPLATE = (
    '{#- <tool_call> "name" #}{% for t in tools or [] %}{{ t.function.name }}|{% endfor %}'
    "{% for m in messages %}[{{ m.role }}: {{ m.content or '' }}"
    "{% if m.reasoning_content %} because {{ m.reasoning_content }}{% endif %}"
    "{% for c in m.tool_calls or [] %} {{ c.id }}={{ c.function.name }}{{ c.function.arguments }}{% endfor %}"
    "{% if m.tool_call_id %} of {{ m.tool_call_id }}{% endif %}]{% endfor %}"
    "{{ reasoning_effort }}"
)
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "3"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


@pytest.fixture(scope="module")
def full_server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    engine, models = FakeEngine(max_model_len=8192), ModelTable(["fake"])
    models.serve(served_model(engine, tokenizer, chat_template=FULL_TEMPLATE))
    with run(ServerConfig(port=0), models, engine) as server:
        yield server


@pytest.fixture
def full(full_server: RunningServer) -> RunningServer:
    """A server whose template shows everything; its engine has been reset."""
    full_server.engine.reset()
    return full_server


def prompt(server: RunningServer, tokenizer: Tokenizer, **fields: Any) -> str:
    server.engine.requests.clear()
    response = post(server, **{"max_tokens": 4, **fields})
    assert response.status_code == 200, response.text
    (request,) = server.engine.requests
    return tokenizer.decode(request.prompt_ids, skip_special_tokens=False)


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(said: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **fields}


CALLED = "[user: hi][assistant:  toolu_1=f{'a': 1}]"
CONVERSATIONS: list[tuple[str, list[dict[str, Any]], str]] = [
    ("a string", HI, "[user: hi]"),
    ("blocks", [user(text("a"), text("b"))], "[user: a\nb]"),
    ("no blocks", [user()], "[user: ]"),
    ("a system turn", [{"role": "system", "content": "be kind"}, *HI], "[system: be kind][user: hi]"),
    ("equal roles are one turn", [*HI, user(text("you"))], "[user: hi\nyou]"),
    ("a call", [*HI, assistant(USE), user(RESULT)], f"{CALLED}[tool: 3 of toolu_1]"),
    (
        "text and a call",
        [*HI, assistant(text("so"), USE), user(RESULT)],
        f"{CALLED.replace(':  toolu', ': so toolu')}[tool: 3 of toolu_1]",
    ),
    (
        "results and what the user says",
        [*HI, assistant(USE), user(RESULT, {**RESULT, "content": [text("x"), text("y")]}, text("go on"))],
        f"{CALLED}[tool: 3 of toolu_1][tool: x\ny of toolu_1][user: go on]",
    ),
    (
        "text before a result",
        [*HI, assistant(USE), user(text("here"), RESULT)],
        f"{CALLED}[user: here][tool: 3 of toolu_1]",
    ),
    (
        "an empty result",
        [*HI, assistant(USE), user({"type": "tool_result", "tool_use_id": "toolu_1"})],
        f"{CALLED}[tool:  of toolu_1]",
    ),
    (
        "an error",
        [*HI, assistant(USE), user({**RESULT, "is_error": True})],
        f"{CALLED}[tool: Error: 3 of toolu_1]",
    ),
    (
        "an empty error",
        [*HI, assistant(USE), user({**RESULT, "content": [], "is_error": True})],
        f"{CALLED}[tool: Error of toolu_1]",
    ),
    (
        "no error",
        [*HI, assistant(USE), user({**RESULT, "is_error": False})],
        f"{CALLED}[tool: 3 of toolu_1]",
    ),
    (
        "reasoning",
        [
            *HI,
            assistant(
                {"type": "thinking", "thinking": "hm", "signature": "EqQB..."},
                {"type": "redacted_thinking", "data": "secret"},
                text("so"),
            ),
            user(text("and?")),
        ],
        "[user: hi][assistant: so because hm][user: and?]",
    ),
    (
        "only reasoning",
        [*HI, assistant({"type": "thinking", "thinking": "hm"}), user(text("and?"))],
        "[user: hi][assistant:  because hm][user: and?]",
    ),
    (
        "only reasoning that is omitted",
        [*HI, assistant({"type": "thinking", "thinking": "", "signature": "x"}), user(text("and?"))],
        "[user: hi][assistant: ][user: and?]",
    ),
]


@pytest.mark.parametrize(("turns", "expected"), [row[1:] for row in CONVERSATIONS])
def test_conversations(
    full: RunningServer, tokenizer: Tokenizer, turns: list[dict[str, Any]], expected: str
) -> None:
    assert prompt(full, tokenizer, messages=turns) == expected
    count = full.http.post("/v1/messages/count_tokens", json={"model": "fake", "messages": turns})
    assert count.json() == {"input_tokens": len(expected.encode())}


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("be kind", "[system: be kind]"),
        (
            [text("be kind", cache_control={"type": "ephemeral"}), text("and short")],
            "[system: be kind\nand short]",
        ),
        ([], ""),
        (None, ""),
    ],
)
def test_system(full: RunningServer, tokenizer: Tokenizer, system: Any, expected: str) -> None:
    assert prompt(full, tokenizer, system=system) == f"{expected}[user: hi]"


def test_tools_and_effort(full: RunningServer, tokenizer: Tokenizer) -> None:
    fields = {"tools": [TOOL], "output_config": {"effort": "low"}}
    assert prompt(full, tokenizer, **fields) == "get_weather|[user: hi]low"
    none = {"tool_choice": {"type": "none"}}
    assert prompt(full, tokenizer, **fields, **none) == "[user: hi]low"
    for more, expected in ((fields, "get_weather|[user: hi]low"), ({**fields, **none}, "[user: hi]low")):
        response = full.http.post("/v1/messages/count_tokens", json={"model": "fake", "messages": HI, **more})
        assert response.json() == {"input_tokens": len(expected)}


def test_a_tools_name_may_be_long(full: RunningServer, tokenizer: Tokenizer) -> None:
    """MCP servers and their tools have names of more than OpenAI's 64 characters."""
    name = "x" * 128
    assert prompt(full, tokenizer, tools=[{**TOOL, "name": name}]) == f"{name}|[user: hi]"
    assert post(full, tools=[{**TOOL, "name": name + "x"}]).status_code == 400


@pytest.mark.parametrize(
    "turn",
    [
        user({**text("hi"), "citations": None, "id": "x", "parsed": {}}),
        {**user(text("hi")), "id": "msg_1", "uuid": "y"},
        user(text("hi", cache_control={"type": "ephemeral", "ttl": "1h"})),
    ],
)
def test_keys_of_history_that_say_nothing(full: RunningServer, tokenizer: Tokenizer, turn: Any) -> None:
    assert prompt(full, tokenizer, messages=[turn]) == "[user: hi]"
    call = {**USE, "caller": {"type": "direct"}, "index": 0}
    ignored = post(full, messages=[*HI, assistant(call), user(RESULT)], max_tokens=4)
    assert ignored.headers["x-vinfer-ignored"] == "index"
    result = {**RESULT, "toolset_name": None, "cache_control": {"type": "ephemeral"}}
    turns = [*HI, assistant(call), user(result)]
    assert prompt(full, tokenizer, messages=turns) == f"{CALLED}[tool: 3 of toolu_1]"


@pytest.mark.parametrize(
    "fields",
    [
        {"cache_control": {"type": "ephemeral"}, "service_tier": "auto", "diagnostics": {}},
        {"system": None, "tools": None, "tool_choice": None, "thinking": None, "stop_sequences": None},
        {"output_config": {"effort": None, "format": None}, "top_k": -1, "temperature": 0, "stream": False},
        {"tools": [{**TOOL, "type": "custom", "cache_control": {"type": "ephemeral"}, "strict": None}]},
        {"tools": [{**TOOL, "eager_input_streaming": True, "input_examples": [], "defer_loading": False}]},
        {"tools": [{**TOOL, "allowed_callers": ["direct"], "description": None}]},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": None}},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
    ],
)
def test_fields_that_change_nothing(
    full: RunningServer, tokenizer: Tokenizer, fields: dict[str, Any]
) -> None:
    offered = "get_weather|" if fields.get("tools") else ""
    assert prompt(full, tokenizer, **fields) == f"{offered}[user: hi]"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "contnet": "x", "content": "y"}]}, "messages[0].contnet"),
    ({"messages": [user({"type": "document", "source": {}})]}, "messages[0].content[0].type"),
    ({"messages": [user({"type": "text"})]}, "messages[0].content[0].text"),
    ({"messages": [user({"type": "text", "texts": "x", "text": "y"})]}, "messages[0].content[0].texts"),
    ({"messages": [user(USE)]}, "messages[0].content[0].type"),
    ({"messages": [*HI, assistant(RESULT)]}, "messages[1].content[0].type"),
    ({"messages": [*HI, assistant(IMAGE), *HI]}, "messages[1].content[0].type"),
    ({"messages": [*HI, assistant(USE)]}, "messages[1].content[0]"),
    ({"messages": [*HI, assistant({**USE, "input": "{}"}), *HI]}, "messages[1].content[0].input"),
    ({"messages": [user({**RESULT, "tool_use_id": ""})]}, "messages[0].content[0].tool_use_id"),
    (
        {"messages": [user({**RESULT, "content": [{"type": "document"}]})]},
        "messages[0].content[0].content[0].type",
    ),
    ({"messages": [user({"type": "image"})]}, "messages[0].content[0].source"),
    (
        {"messages": [user({"type": "image", "source": {"type": "file", "file_id": "f"}})]},
        "messages[0].content[0].source.type",
    ),
    (
        {"messages": [user({"type": "image", "source": {**IMAGE["source"], "media_type": "image/bmp"}})]},
        "messages[0].content[0].source.media_type",
    ),
    # The model takes only text.
    ({"messages": [user(text("a"), IMAGE)]}, "messages[0].content[1].source.data"),
    (
        {"messages": [*HI, assistant(USE), user({**RESULT, "content": [text("a"), IMAGE]})]},
        "messages[2].content[0].content[1].source.data",
    ),
    ({"system": [IMAGE]}, "system[0].type"),
    ({"system": 3}, "system"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": 2.1}, "temperature"),
    ({"top_k": -2}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"stop_sequences": "x"}, "stop_sequences"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{**TOOL, "name": "no name"}]}, "tools[0].name"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tools": [{**TOOL, "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
    ({"tools": [{**TOOL, "mood": "good"}]}, "tools[0].mood"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{**TOOL, "input_examples": [{"city": "Oslo"}]}]}, "tools[0].input_examples"),
    ({"tools": [{**TOOL, "input_examples": {}}]}, "tools[0].input_examples"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [{**TOOL, "defer_loading": 0.0}]}, "tools[0].defer_loading"),
    ({"tools": [{**TOOL, "allowed_callers": ["code_execution_20250825"]}]}, "tools[0].allowed_callers"),
    ({"tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "any", "name": "get_weather"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 5}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "disabled", "display": "omitted"}}, "thinking.display"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"output_config": {"effort": "endless"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
    (
        {
            "tools": [TOOL],
            "tool_choice": {"type": "any"},
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        },
        "tool_choice",
    ),
    ({"temprature": 1}, "'temprature'"),
    ({"container": "c"}, "container"),
]
# Only the route can compare fields with each other, or with the end of the conversation.
BEYOND_SCHEMAS = ("messages[1].content[0]", "tools[1].name", "tool_choice.name", "messages[0].contnet")


@pytest.mark.parametrize(("fields", "path"), BAD, ids=[path for _, path in BAD])
def test_bad_fields(full: RunningServer, fields: dict[str, Any], path: str) -> None:
    response = post(full, **fields)
    assert response.status_code == 400, response.text
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].split()[0].rstrip(":") == path, error
    assert full.engine.requests == []
    if path not in BEYOND_SCHEMAS and not path.endswith(".texts"):
        validator = Contract(ServerConfig(), full.models).request_validator("POST", "/v1/messages")
        assert not validator.is_valid(body(**fields))


def test_unknown_fields_can_be_ignored(start: Start) -> None:
    with start(unknown_fields="ignore") as server:
        assert post(server, mood="good", max_tokens=4).status_code == 200
        assert post(server, container="c", max_tokens=4).status_code == 400
