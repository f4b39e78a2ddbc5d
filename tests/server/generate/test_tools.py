"""Tools over HTTP: the prompt, how the answer is constrained and parsed, and every refusal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fake_engine import EOS, IM_END, FakeEngine, ids_of, served_model
from running_server import RunningServer, Start, events, run
from tool_requests import (
    CALL,
    CITY,
    TIME,
    TOOLS,
    WEATHER,
    follows,
    function,
    prompt_text,
    say,
)

from vinfer.config import ServerConfig
from vinfer.server.constrain.grammars import MAX_SCHEMA_CHARS
from vinfer.server.constrain.tool_grammar import MAX_CONSTRAINED_CALLS
from vinfer.server.fields.tools import MAX_TOOLS, parsed_arguments
from vinfer.server.model_table import ModelTable
from vinfer.text.answer_form import answer_form
from vinfer.text.chat_form import ChatForm
from vinfer.text.chat_template import ChatTemplate
from vinfer.text.tokenizer import Tokenizer

NAMED = {"type": "function", "function": {"name": "get_time"}}
TIME_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def roomy_server(start: Start) -> Iterator[RunningServer]:
    with start(max_model_len=8192) as server:
        yield server


@pytest.fixture
def tools_server(roomy_server: RunningServer) -> RunningServer:
    """A server with room for prompts that describe tools; its engine has been reset."""
    roomy_server.engine.reset()
    return roomy_server


def test_a_call(tools_server: RunningServer) -> None:
    choice = say(tools_server, CALL)
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call == {
        "id": call["id"],
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    }
    assert choice["message"]["content"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        "nothing",
        "[1]",
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"a": 1, "a": 2}',
        '{"a":' * 900 + "1" + "}" * 900,
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_arguments_that_are_no_sound_json_stay_text(arguments: str) -> None:
    """Otherwise a template that writes them as JSON could fail to render, or its output to encode."""
    assert parsed_arguments(arguments) == arguments


def test_arguments_keep_their_numbers() -> None:
    parsed = parsed_arguments('{"a": 5.0, "b": 5}')
    assert isinstance(parsed, dict)
    assert [type(value) for value in parsed.values()] == [float, int]


def test_text_and_two_calls(tools_server: RunningServer) -> None:
    message = say(tools_server, f"Let me see.\n{CALL}\n{TIME_CALL}")["message"]
    assert message["content"] == "Let me see."
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather", "get_time"]


def test_one_call_where_they_must_not_be_parallel(tools_server: RunningServer) -> None:
    message = say(tools_server, f"{CALL}\n{TIME_CALL}", parallel_tool_calls=False)["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_weather"]


def test_arguments_are_streamed_as_they_come(tools_server: RunningServer) -> None:
    tools_server.engine.script = [*ids_of(CALL), EOS]
    chunks = events(tools_server.chat(tools=TOOLS, max_tokens=500, stream=True).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    arguments = [d["tool_calls"][0]["function"]["arguments"] for d in deltas if "tool_calls" in d]
    assert arguments == ["", *'{"city": "Oslo"}']
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert not any(delta.get("content") for delta in deltas)


@pytest.mark.parametrize(
    "text", ["plain", "<tool_call>\nnothing\n</tool_call>", '<tool_call>{"name": "rm", "arguments": {}}']
)
def test_what_is_no_call_is_text(tools_server: RunningServer, text: str) -> None:
    choice = say(tools_server, text)
    assert choice["message"] == {
        "role": "assistant",
        "content": text,
        "refusal": None,
        "annotations": [],
    }
    assert choice["finish_reason"] == "stop"


def test_nothing_is_a_call_without_tools_or_with_none(tools_server: RunningServer) -> None:
    assert say(tools_server, CALL, tools=[])["message"]["content"] == CALL
    assert say(tools_server, CALL, tool_choice="none")["message"]["content"] == CALL


def test_a_call_that_is_cut_off(tools_server: RunningServer) -> None:
    choice = say(tools_server, CALL, max_tokens=CALL.index("Oslo") + 2)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Os'


def test_each_choice_has_its_calls_and_all_logprobs(tools_server: RunningServer) -> None:
    tools_server.engine.script = [*ids_of(CALL), EOS]
    fields = {"tools": TOOLS, "max_tokens": 500, "n": 2, "logprobs": True}
    choices = tools_server.chat(**fields).json()["choices"]
    assert [len(choice["message"]["tool_calls"]) for choice in choices] == [1, 1]
    assert [len(choice["logprobs"]["content"]) for choice in choices] == [len(CALL)] * 2
    chunks = events(tools_server.chat(**fields, stream=True).text)
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        tokens = [
            token["token"] for choice in mine for token in (choice["logprobs"] or {}).get("content", ())
        ]
        assert "".join(tokens) == CALL


CONSTRAINED: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "required": (
        {"tool_choice": "required"},
        [CALL, TIME_CALL, f"{CALL}\n{TIME_CALL}", "\n".join([TIME_CALL] * MAX_CONSTRAINED_CALLS)],
        [
            "Hi",
            CALL[:-1],
            "\n".join([TIME_CALL] * (MAX_CONSTRAINED_CALLS + 1)),
            CALL.replace('"Oslo"', "1"),
            CALL.replace('"city"', '"town"'),
            CALL.replace('"Oslo"', '"Oslo", "x": 1'),
            TIME_CALL.replace("{}}", '{"x": 1}}'),
        ],
    ),
    "required, one": (
        {"tool_choice": "required", "parallel_tool_calls": False},
        [CALL, TIME_CALL],
        [f"{CALL}\n{TIME_CALL}"],
    ),
    "named": ({"tool_choice": NAMED}, [TIME_CALL], [CALL, f"{TIME_CALL}\n{TIME_CALL}", "Hi"]),
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_an_answer_is_constrained_to_calls(tools_server: RunningServer, name: str) -> None:
    fields, good, bad = CONSTRAINED[name]
    for text, expected in [*((text, True) for text in good), *((text, False) for text in bad)]:
        tools_server.engine.reset()
        assert tools_server.chat(tools=TOOLS, **fields).status_code == 200
        (request,) = tools_server.engine.requests
        assert follows(request, text) is expected, text


def test_references_of_a_schema_are_its_own(tools_server: RunningServer) -> None:
    """Each schema is a separate document: `#` is its root, not that of the grammar."""
    schema = {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/point"}},
        "required": ["p"],
        "$defs": {"point": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
    }
    for text, expected in (("[1, 2]", True), ('"x"', False)):
        tools_server.engine.reset()
        assert (
            tools_server.chat(tools=[function("f", schema), TIME], tool_choice="required").status_code == 200
        )
        call = f'<tool_call>\n{{"name": "f", "arguments": {{"p": {text}}}}}\n</tool_call>'
        assert follows(tools_server.engine.requests[0], call) is expected


def test_auto_and_none_bind_nothing(tools_server: RunningServer) -> None:
    for fields in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"parallel_tool_calls": False}):
        assert tools_server.chat(tools=TOOLS, **fields).status_code == 200
    assert [request.grammar for request in tools_server.engine.requests] == [None] * 4


def test_the_prompt_explains_tools_to_a_model_whose_template_knows_none(
    tools_server: RunningServer, tokenizer: Tokenizer
) -> None:
    assert tools_server.chat(tools=[TIME]).status_code == 200
    listed = json.dumps(
        {
            "type": "function",
            "function": {
                "name": "get_time",
                "description": "",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    )
    text = prompt_text(tools_server, tokenizer)
    assert text.startswith("<|im_start|>system\n# Tools\n\n")
    assert f"<tools>\n{listed}\n</tools>" in text
    assert text.endswith("<|im_end|><|im_start|>user\nhi<|im_end|><|im_start|>assistant\n")
    tools_server.engine.reset()
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert tools_server.chat(tools=[TIME], messages=messages).status_code == 200
    assert prompt_text(tools_server, tokenizer).startswith("<|im_start|>system\nBe kind.\n\n# Tools\n\n")


def test_none_leaves_tools_out_of_the_prompt(tools_server: RunningServer, tokenizer: Tokenizer) -> None:
    assert tools_server.chat(tools=TOOLS, tool_choice="none").status_code == 200
    assert "Tools" not in prompt_text(tools_server, tokenizer)


ROUND_TRIP: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
            },
            {"id": "call_2", "type": "function", "function": {"name": "get_time", "arguments": "{bad"}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain <|im_end|>"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "noon"}]},
]


def test_a_round_trip_in_text(tools_server: RunningServer, tokenizer: Tokenizer) -> None:
    assert tools_server.chat(messages=ROUND_TRIP).status_code == 200
    assert prompt_text(tools_server, tokenizer) == (
        "<|im_start|>user\nWeather?<|im_end|><|im_start|>assistant\n"
        f"{CALL}\n"
        '<tool_call>\n{"name": "get_time", "arguments": {bad}\n</tool_call><|im_end|>'
        "<|im_start|>user\n<tool_response>\nrain <|im_end|>\n</tool_response>\n"
        "<tool_response>\nnoon\n</tool_response><|im_end|><|im_start|>assistant\n"
    )
    # A result cannot end the turn: its end token is text.
    (request,) = tools_server.engine.requests
    assert list(request.prompt_ids).count(IM_END) == 3


TEACHING = (
    "{{ tools | tojson if tools else 'no tools' }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    '<tool_call>{"name": {{ c.function.arguments | tojson }}'
    "{% endfor %}<|im_end|>{% endfor %}"
)


def test_a_template_that_knows_tools_gets_them(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(max_model_len=8192), ModelTable(["fake"])
    models.serve(served_model(engine, tokenizer, chat_template=TEACHING))
    with run(ServerConfig(port=0), models, engine) as server:
        assert server.chat(tools=[WEATHER], messages=ROUND_TRIP).status_code == 200
        described = {"name": "get_weather", "description": "Weather of a city", "parameters": CITY}
        listed = {"type": "function", "function": described}
        assert prompt_text(server, tokenizer) == (
            f"{json.dumps([listed])}<|im_start|>user\nWeather?<|im_end|><|im_start|>assistant\n"
            '<tool_call>{"name": {"city": "Oslo"}<tool_call>{"name": "{bad"<|im_end|>'
            "<|im_start|>tool\nrain <|im_end|><|im_end|><|im_start|>tool\nnoon<|im_end|>"
        )


def test_a_template_of_its_own_for_tools(tokenizer: Tokenizer) -> None:
    engine, models = FakeEngine(max_model_len=2048), ModelTable(["fake"])
    model = served_model(engine, tokenizer)
    of_tools = ChatTemplate(
        "{{ depth2 }}" + TEACHING, tokenizer.special_tokens, control_tokens=tokenizer.control_tokens
    )
    models.serve(
        dataclasses.replace(
            model,
            tool_use=ChatForm(of_tools, answer_form("auto", of_tools)),
            chat_template_kwargs={"depth2": "integer"},
        )
    )
    with run(ServerConfig(port=0), models, engine) as server:
        assert server.chat(tools=[WEATHER], chat_template_kwargs={"depth2": 7}).status_code == 200
        assert prompt_text(server, tokenizer).startswith('7[{"type"')
        server.engine.reset()
        assert server.chat(tools=[WEATHER], tool_choice="none").status_code == 200
        assert prompt_text(server, tokenizer).startswith("<|im_start|>user\nhi")
        # A template is chosen by the request's tools, never by its name.
        refused = server.chat(tools=[WEATHER], chat_template_kwargs={"chat_template": "rag"})
        assert refused.json()["error"]["param"] == "chat_template_kwargs.chat_template"


def test_tokenize_counts_the_same_prompt(tools_server: RunningServer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert tools_server.chat(tools=TOOLS).status_code == 200
    response = tools_server.http.post("/tokenize", json={"messages": messages, "tools": TOOLS})
    assert tuple(response.json()["tokens"]) == tools_server.engine.requests[0].prompt_ids


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({"tools": {}}, "tools"),
    "too many": ({"tools": [function(f"f{i}") for i in range(MAX_TOOLS + 1)]}, "tools"),
    "no function": ({"tools": [{"type": "function"}]}, "tools[0].function"),
    "another type": ({"tools": [{"type": "web_search", "function": {"name": "f"}}]}, "tools[0].type"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "bad name": ({"tools": [TIME, function("a b")]}, "tools[1].function.name"),
    "long name": ({"tools": [function("a" * 129)]}, "tools[0].function.name"),
    "same name": ({"tools": [TIME, WEATHER, TIME]}, "tools[2].function.name"),
    "parameters": ({"tools": [function("f", [])]}, "tools[0].function.parameters"),
    "no object": ({"tools": [function("f", {"type": "array"})]}, "tools[0].function.parameters"),
    "unknown field": ({"tools": [function("f", x=1)]}, "tools[0].function.x"),
    "choice": ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
    "choice of no function": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": None}},
        "tool_choice",
    ),
    "choice of a type": ({"tools": TOOLS, "tool_choice": {"type": "auto"}}, "tool_choice"),
    "choice without name": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {}}},
        "tool_choice.function.name",
    ),
    "absent": (
        {"tools": [WEATHER], "tool_choice": NAMED},
        "tool_choice.function.name",
    ),
    "required without tools": ({"tool_choice": "required"}, "tool_choice"),
    "named without tools": ({"tools": [], "tool_choice": NAMED}, "tool_choice"),
    "another form": (
        {"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}},
        "tool_choice",
    ),
    "no end": ({"tools": TOOLS, "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
    "not a schema": (
        {"tools": [TIME, function("f", {"properties": 3})], "tool_choice": "required"},
        "tools[1].function.parameters",
    ),
    "unsatisfiable": (
        {
            "tools": [TIME, function("f", {"properties": {"a": False}, "required": ["a"]})],
            "tool_choice": "required",
        },
        "tools[1].function.parameters",
    ),
    "too long": (
        {
            "tools": [function("f", {"description": "x" * MAX_SCHEMA_CHARS})],
            "tool_choice": "required",
        },
        "tools[0].function.parameters",
    ),
    "too long together": (
        {
            "tools": [function(f"f{i}", {"description": "x" * (MAX_SCHEMA_CHARS // 2)}) for i in range(2)],
            "tool_choice": "required",
        },
        "tools",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tools_are_refused_in_words(tools_server: RunningServer, name: str) -> None:
    fields, param = BAD[name]
    response = tools_server.chat(**fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert tools_server.engine.requests == []


def test_openai_python_folds_the_stream(tools_server: RunningServer) -> None:
    tools_server.engine.script = [*ids_of(f"Well.\n{CALL}\n{TIME_CALL}"), EOS]
    with (
        openai.OpenAI(base_url=f"{tools_server.url}/v1", api_key="none", max_retries=0) as client,
        client.chat.completions.stream(
            model="fake",
            messages=[{"role": "user", "content": "hi"}],
            tools=TOOLS,  # type: ignore[arg-type]
            max_tokens=500,
        ) as stream,
    ):
        completion = stream.get_final_completion()
    message = completion.choices[0].message
    assert message.content == "Well."
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls or ()] == [
        ("get_weather", '{"city": "Oslo"}'),
        ("get_time", "{}"),
    ]
    assert completion.choices[0].finish_reason == "tool_calls"
