"""History is accepted: what clients add has no effect and is named; what the prompt needs is never dropped.

The types say which objects are history (`HistoryBody`) and which ask for something (`Body`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import httpx
import pytest
from examples import examples
from fake_engine import PROMPT_IDS, FakeEngine, ids_of, served_model
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from pydantic import BaseModel
from refusals import assert_refused
from running_server import RunningServer, Start, run, wait_until

from vinfer.config import ServerConfig
from vinfer.server.fields.body_model import Body, HistoryBody
from vinfer.server.fields.messages import MESSAGE_CONTENT_KEYS, ChatMessage
from vinfer.server.fields.near_misses import near_miss, num_typos
from vinfer.server.fields.responses.input import ReasoningItem
from vinfer.server.generate.call_ids import checked_length, with_call_ids
from vinfer.server.model_table import ModelTable
from vinfer.server.route_table import ROUTES
from vinfer.text.answer_form import AnswerForm
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import HERMES

USER = {"role": "user", "content": "hi"}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLS = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "r"}]
CALLS[2]["tool_call_id"] = "c"
PNG = "data:image/png;base64,iVBORw0KGgo="
# What libraries add, by where they put it.
IN_MESSAGES = {
    "parsed": {"a": 1},  # openai-python and openai-node: parse()
    "id": "msg_1",
    "type": "text",
    "index": 0,
    "reasoning": "Hm",  # OpenRouter and vLLM
    "reasoning_details": [{"type": "reasoning.text", "text": "Hm"}],
    "provider_specific_fields": {"x": 1},  # LiteLLM
    "annotations": [{"type": "url_citation"}],
    "cache_control": {"type": "ephemeral"},
    "additional_kwargs": {"x": 1},  # LangChain
    "response_metadata": {"x": 1},
    "usage_metadata": {"x": 1},
    "context": {"citations": []} | {"intent": "x"},  # Azure
    "createdAt": "2026-01-01",  # AI SDK
    "finish_reason": "stop",
    "stop_reason": None,
    "logprobs": {"content": [1]},
    "models_usage": {"x": 1},  # autogen
    "sender": "a",
    "metadata": {"x": 1},
    "\u0000\n": 1,
}
IN_CALLS = {"index": 0, "parsed_arguments": {}, "extra_content": {"google": {"thought_signature": "x"}}}
IN_FUNCTIONS = {"parsed_arguments": {"a": 1}, "description": "x", "output": None, "strict": True}
IN_PARTS = {
    "cache_control": {"type": "ephemeral"},
    "id": "x",
    "index": 0,
    "annotations": [1],
    "logprobs": [1],
}


@pytest.fixture(scope="module")
def wide_server(start: Start) -> Iterator[RunningServer]:
    with start(max_model_len=2048) as server:
        yield server


@pytest.fixture
def server(wide_server: RunningServer) -> RunningServer:
    """A server with room for the prompts of tools."""
    wide_server.engine.reset()
    return wide_server


def with_extras(places: str, extras: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a conversation with these keys in its messages, parts, calls or functions."""
    message: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": "b"}]}
    message["tool_calls"] = [{**CALL, "function": dict(CALL["function"])}]
    targets = {
        "message": message,
        "part": message["content"][0],
        "call": message["tool_calls"][0],
        "function": message["tool_calls"][0]["function"],
    }
    targets[places].update(extras)
    return [USER, message, {"role": "tool", "content": "r", "tool_call_id": "c"}]


EXTRAS = {"message": IN_MESSAGES, "part": IN_PARTS, "call": IN_CALLS, "function": IN_FUNCTIONS}


@pytest.mark.parametrize(
    ("place", "key"), [(place, key) for place, extras in EXTRAS.items() for key in extras]
)
def test_what_libraries_add_has_no_effect(server: RunningServer, place: str, key: str) -> None:
    value = EXTRAS[place][key]
    assert server.chat(messages=with_extras(place, {})).status_code == 200
    response = server.chat(messages=with_extras(place, {key: value}))
    assert response.status_code == 200, response.text
    plain, changed = server.engine.requests
    assert changed.prompt_ids == plain.prompt_ids
    is_shown = value not in (None, [], {}, "") and key.isprintable()
    assert response.headers.get("x-vinfer-ignored") == (key if is_shown else None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{**USER, "parsed": 1}]}),
        ("/v1/count_tokens", {"conversation": [{**USER, "parsed": 1}]}),
        ("/tokenize", {"messages": [{**USER, "parsed": 1}]}),
        ("/v1/responses", {"input": [{**USER, "parsed": 1, "phase": None}]}),
        ("/v1/responses", {"input": [{"role": "assistant", "content": "a", "parsed": 1}, USER]}),
    ],
)
def test_every_route_with_a_conversation(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    response = server.http.post(path, json={"model": "fake", **body})
    assert response.status_code == 200, response.text
    assert response.headers["x-vinfer-ignored"] == "parsed"


def test_names_are_few_safe_counted_and_logged(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    def num_ignored() -> float:
        text = server.http.get("/metrics").text
        return float(text.partition("\nvinfer:ignored_keys_total ")[2].partition("\n")[0])

    before = num_ignored()
    extras = {"a b": 1, "x" * 65: 1, "é": 1, "a\r\nb": 1} | {f"key-{i}.x_": 1 for i in range(9)}
    with caplog.at_level(logging.DEBUG, logger="vinfer.server.http.gate"):
        response = server.chat(messages=[{**USER, **extras}, {**USER, **extras}], stream=True)
        # A request is counted once its answer has been sent.
        wait_until(lambda: num_ignored() - before == 2 * len(extras))
    assert response.headers["x-vinfer-ignored"].split(", ") == [f"key-{i}.x_" for i in range(8)]
    assert [record.message for record in caplog.records if "key-0.x_" in record.message]
    assert "x-vinfer-ignored" not in server.chat().headers


@pytest.mark.parametrize("key", sorted(MESSAGE_CONTENT_KEYS))
def test_content_elsewhere_is_never_dropped(server: RunningServer, key: str) -> None:
    for value in ({"name": "f"}, "x", [1]):
        response = server.chat(messages=[{**USER, key: value}])
        assert_refused(response, f"messages[0].{key}", "carries content")
    for empty in (None, "", [], {}):
        response = server.chat(messages=[{**USER, key: empty}])
        assert response.status_code == 200
        assert "x-vinfer-ignored" not in response.headers


@pytest.mark.parametrize(
    ("messages", "param", "meant"),
    [
        ([{**USER, "tool_cals": [CALL]}], "messages[0].tool_cals", "tool_calls"),
        ([{**USER, "toolCalls": [CALL]}], "messages[0].toolCalls", "tool_calls"),
        ([{**USER, "tool_call": [CALL]}], "messages[0].tool_call", "tool_calls"),
        ([{**USER, "contents": "x"}], "messages[0].contents", "content"),
        ([{**USER, "cotnent": "x"}], "messages[0].cotnent", "content"),
        ([{**USER, "reasoningContent": "x"}], "messages[0].reasoningContent", "reasoning_content"),
        ([{**USER, "toolCallId": "x"}], "messages[0].toolCallId", "tool_call_id"),
        (
            with_extras("function", {"argumnets": "{}"}),
            "messages[1].tool_calls[0].function.argumnets",
            "arguments",
        ),
        (
            with_extras("call", {"functon": {"name": "f"}}),
            "messages[1].tool_calls[0].functon",
            "function",
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "imageUrl": PNG}]}],
            "messages[0].content[0].imageUrl",
            "image_url",
        ),
    ],
)
def test_near_misses(server: RunningServer, messages: Any, param: str, meant: str) -> None:
    assert_refused(server.chat(messages=messages), param, f"did you mean {meant}?")


def test_no_key_of_a_library_is_a_near_miss() -> None:
    for model in history_types():
        known = set(model.model_fields)
        for extras in EXTRAS.values():
            for key in extras:
                assert key in known or near_miss(key, known) is None, (model, key)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_typos_are_counted_as_a_distance(first: str, second: str) -> None:
    num = num_typos(first, second)
    assert num == num_typos(second, first)
    assert (num == 0) == (first == second)
    assert abs(len(first) - len(second)) <= num <= max(len(first), len(second))


def test_typos() -> None:
    cases = {
        ("tool_cals", "tool_calls"): 1,
        ("cotnent", "content"): 1,
        ("", "abc"): 3,
        ("kitten", "sitting"): 3,
    }
    assert {pair: num_typos(*pair) for pair in cases} == cases


# Null in any optional field.


def types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from types_in(inner)


def body_types(model: type[BaseModel]) -> set[type[Body]]:
    found = {model}
    for field in model.model_fields.values():
        for inner in types_in(field.annotation):
            if isinstance(inner, type) and issubclass(inner, Body) and inner not in found:
                found |= body_types(inner)
    return found  # type: ignore[return-value]


FORMS = [form.fields for operation in ROUTES.values() for form in operation.forms]
ALL_TYPES = sorted({found for form in FORMS for found in body_types(form)}, key=lambda model: model.__name__)


def history_types() -> list[type[Body]]:
    return [model for model in ALL_TYPES if issubclass(model, HistoryBody)]


def test_the_types_are_found() -> None:
    names = {model.__name__ for model in ALL_TYPES}
    assert {"ChatFields", "StreamOptions", "ToolCall", "ImageUrl", "TextFormat", "MessageItem"} <= names
    assert ChatMessage in history_types()
    assert ReasoningItem in history_types()


FULL: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "s", "name": "n"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b", "reasoning_content": "c", "tool_calls": [CALL]},
            {"role": "tool", "content": "r", "tool_call_id": "c"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}],
        "response_format": {"type": "text"},
        "chat_template_kwargs": {"style": "x"},
        "max_tokens": 2,
    },
    "/v1/completions": {"prompt": "a", "structured_outputs": {"choice": ["A"]}, "stream": True},
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "r"},
        ],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        "reasoning": {"summary": "auto"},
        "tools": [{"type": "function", "name": "f"}],
        "max_output_tokens": 2,
    },
    "/v1/embeddings": {"input": "a"},
    "/tokenize": {"messages": [USER]},
}


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    if isinstance(value, dict):
        yield path, value
        for key, inner in value.items():
            if key not in ("parameters", "schema"):
                yield from objects(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from objects(inner, (*path, i))


def optional_keys(present: dict[str, Any], models: Sequence[type[Body]]) -> set[str]:
    """Return the optional keys that such an object lacks, whichever of the types it is of."""
    fitting = []
    for model in models:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        if set(present) <= set(fields):
            fitting.append({name for name, field in fields.items() if not field.is_required()})
    return set.intersection(*fitting) - set(present)


@pytest.mark.parametrize("path", FULL)
def test_null_in_any_optional_field_is_as_good_as_nothing(server: RunningServer, path: str) -> None:
    body = {"model": "fake", **FULL[path]}
    forms = [form.fields for form in ROUTES["POST", path].forms]
    num_tried = 0
    for place, value in list(objects(body)):
        if place[-1:] == ("chat_template_kwargs",):
            continue
        for key in sorted(optional_keys(value, ALL_TYPES if place else forms)):
            value[key] = None
            response = server.http.post(path, json=body)
            del value[key]
            assert response.status_code == 200, (place, key, response.text)
            num_tried += 1
    assert num_tried >= {"/v1/chat/completions": 40, "/v1/responses": 15}.get(path, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"stream": True, "stream_options": {"include_usage": None, "continuous_usage_stats": None}},
        {
            "messages": [
                *CALLS[:1],
                {**CALLS[1], "tool_calls": [{**CALL, "id": None, "type": None}]},
                CALLS[2],
            ]
        },
        {"messages": [{**USER, "name": None, "tool_calls": None, "tool_call_id": None}]},
        {"tools": [{"type": "function", "function": {"name": "f", "strict": None, "parameters": None}}]},
        {"chat_template_kwargs": {"enable_thinking": None}},
        {"response_format": {"type": "text", "json_schema": None}},
    ],
)
def test_null_where_clients_send_it(server: RunningServer, change: dict[str, Any]) -> None:
    response = server.chat(**change)
    assert response.status_code == 200, response.text


# Empty content and arguments.

WRITTEN = (
    "{% for m in messages %}[{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.id }}="
    "{% for k, v in c.function.arguments.items() %}{{ k }}{{ v }}{% endfor %}{% endfor %}"
    "{{ m.tool_call_id }}]{% endfor %}"
)
LENGTH_CHECK = (
    "{% for m in messages %}{% for tool_call in m.tool_calls or [] %}"
    "{% if tool_call.id is not defined or tool_call.id|length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def prompt(tokenizer: Tokenizer, template: str, messages: list[dict[str, Any]]) -> str:
    engine, models = FakeEngine(max_model_len=2048), ModelTable(["fake"])
    form = AnswerForm(tool_format=HERMES, has_tools_as_text=False)
    model = served_model(engine, tokenizer, chat_template=template)
    models.serve(dataclasses.replace(model, answer_form=form))
    with run(ServerConfig(port=0), models, engine) as server:
        response: httpx.Response = server.chat(messages=messages)
        assert response.status_code == 200, response.text
        return tokenizer.decode(engine.requests[0].prompt_ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": []},
        {"role": "user", "content": []},
        {"role": "system", "content": []},
    ],
)
def test_no_content_is_an_empty_text(server: RunningServer, message: dict[str, Any]) -> None:
    assert server.chat(messages=[message, USER]).status_code == 200
    assert server.chat(messages=[{**message, "content": ""}, USER]).status_code == 200
    first, second = server.engine.requests
    assert first.prompt_ids == second.prompt_ids
    assert len(first.prompt_ids) > len(PROMPT_IDS)


def test_empty_arguments_are_no_arguments(tokenizer: Tokenizer) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f"}} for _ in range(5)]
    for call, arguments in zip(calls, ["", "null", " \n", "{}", None], strict=True):
        call["function"] = {"name": "f", "arguments": arguments}
    messages = [USER, {"role": "assistant", "tool_calls": calls}, {**CALLS[2]}]
    assert prompt(tokenizer, WRITTEN, messages) == "[user:hi][assistant:Nonec=c=c=c=c=][tool:rc]"


def test_ids_of_nine_characters(tokenizer: Tokenizer) -> None:
    """Templates of Mistral check the length. Ids come from anywhere, and each result keeps its call."""
    ids = ["call_" + "a" * 24, "123456789", "short", None]
    calls = [{"id": call_id, "function": {"name": "f", "arguments": "{}"}} for call_id in ids]
    results = [{"role": "tool", "content": "r", "tool_call_id": call_id or "other"} for call_id in ids]
    messages = [USER, {"role": "assistant", "tool_calls": calls}, *results, USER]
    text = prompt(tokenizer, LENGTH_CHECK + WRITTEN, messages)
    written = text.partition("[assistant:None")[2].partition("]")[0].split("=")[:-1]
    assert all(len(call_id) == 9 and call_id.isalnum() for call_id in written)
    assert written[1] == "123456789"
    assert len(set(written)) == 4
    assert [part.partition("]")[0] for part in text.split("[tool:r")[1:]] == written


def test_templates_that_check_no_length_get_the_ids_as_they_came(tokenizer: Tokenizer) -> None:
    assert prompt(tokenizer, WRITTEN, CALLS) == "[user:hi][assistant:Nonec=][tool:rc]"
    assert checked_length("{{ x|length != 9 }}{{ messages|length == 3 }}") is None
    assert checked_length("{% if tool_call['id'] | length == 9 %}") == 9


@examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.none() | st.text(min_size=1, max_size=12), st.booleans()), max_size=5))
def test_every_call_gets_an_id_of_its_own(calls: list[tuple[str | None, bool]]) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "tool_calls": [{"id": call_id} for call_id, _ in calls]},
        *(
            {"role": "tool", "tool_call_id": f"r{i}"}
            for i, (_, is_answered) in enumerate(calls)
            if is_answered
        ),
    ]
    for length in (None, 9):
        (asked, *_) = with_call_ids(messages, length)
        found = [call["id"] for call in asked["tool_calls"]]
        assert all(found)
        given_ids = [call_id for call_id, _ in calls if call_id is not None]
        assert len(set(found)) == len(found) - (len(given_ids) - len(set(given_ids)))


def test_earlier_ids_are_not_changed() -> None:
    assert ids_of("a") != ids_of("b")
    messages = [{"role": "assistant", "tool_calls": [{"id": "x"}]}]
    assert with_call_ids(messages, None) == messages
