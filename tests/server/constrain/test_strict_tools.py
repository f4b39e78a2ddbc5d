"""Strict tools with optional calls, in every format: text is free, but a call is constrained once it begins.

llguidance itself decides what a grammar allows, with the tokenizer of the tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import EOS, IM_START, ids_of
from running_server import RunningServer
from tool_requests import CITY, WITH_CONTROL_TOKEN, follows, function, say, serving

from vinfer.engine.grammar import GrammarMatcher
from vinfer.text.answer_form import AnswerForm
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import FORMATS, HERMES, PYTHONIC

STRICT = function("get_weather", CITY, strict=True)
LOOSE = function("find", {"type": "object", "properties": {"id": {"type": "integer"}}}, strict=False)
TOOLS = [STRICT, LOOSE]
GOOD = ("get_weather", '{"city": "Oslo"}')
WRONG = ("get_weather", '{"town": "Oslo"}')
# `parameters` constrain only the calls of strict tools.
ANY_OBJECT = ("find", '{"id": "x", "other": [1]}')


@pytest.fixture(scope="module", params=sorted(FORMATS))
def server(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Iterator[RunningServer]:
    with serving(tokenizer, AnswerForm(tool_format=FORMATS[request.param])) as server:
        server.tool_format = FORMATS[request.param]
        yield server


@pytest.fixture(scope="module")
def thinking_server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    with serving(tokenizer, AnswerForm(tool_format=HERMES, has_reasoning=True)) as server:
        yield server


def constrained(server: RunningServer, **fields: Any) -> Any:
    """Return the engine's request for these tools."""
    server.engine.reset()
    response = server.chat(**{"tools": TOOLS, "tool_choice": "auto", **fields})
    assert response.status_code == 200, response.text
    (request,) = server.engine.requests
    return request


def check(server: RunningServer, texts: dict[str, bool], **fields: Any) -> None:
    for text, expected in texts.items():
        assert follows(constrained(server, **fields), text) is expected, text


def test_text_is_free_and_calls_are_constrained(server: Any) -> None:
    form = server.tool_format
    # In text a call begins with its marker, even if an answer may begin with a call that has none.
    lead = f"Let me see. {form.opening if form.begins_with_call else ''}"
    check(
        server,
        {
            "": True,
            "Plain text, [1] and {braces} and <tags>.\n\nGrüße": True,
            form.written([GOOD]): True,
            "\n" + form.written([GOOD]): True,
            lead + form.written([GOOD]): True,
            form.written([ANY_OBJECT]): True,
            form.written([GOOD, ANY_OBJECT]): True,
            form.written([WRONG]): False,
            lead + form.written([WRONG]): False,
            form.written([("rm", "{}")]): False,
            form.written([GOOD, WRONG]): False,
            lead + form.written([GOOD])[:-1]: False,
        },
    )
    check(server, {form.written([GOOD]): True, form.written([GOOD, GOOD]): False}, parallel_tool_calls=False)


def test_what_is_constrained_is_read_as_a_call(server: Any) -> None:
    """Whole and streamed."""
    server.engine.reset()
    text = server.tool_format.written([GOOD, ANY_OBJECT])
    choice = say(server, text, tools=TOOLS) if server.tool_format is not FORMATS["mistral"] else None
    if choice is not None:
        calls = [call["function"] for call in choice["message"]["tool_calls"]]
        assert [(call["name"], call["arguments"]) for call in calls] == [GOOD, ANY_OBJECT]
        assert choice["finish_reason"] == "tool_calls"


def test_without_a_strict_tool_nothing_is_constrained(server: Any) -> None:
    assert constrained(server, tools=[LOOSE]).grammar is None
    assert constrained(server, tools=[function("f", CITY)]).grammar is None
    assert constrained(server, tool_choice="none").grammar is None
    assert constrained(server, tools=[STRICT]).grammar is not None


def test_thoughts_stay_free(thinking_server: RunningServer) -> None:
    good, wrong = HERMES.written([GOOD]), HERMES.written([WRONG])
    check(
        thinking_server,
        {
            f"<think>\nI may write {wrong}.\n</think>\n\n{good}": True,
            f"<think>I may write {wrong}.</think>Hello": True,
            "<think>without an end": True,
            f"<think>so</think>\n\n{wrong}": False,
            good: True,
            wrong: False,
        },
    )
    thinking_server.engine.script = [*ids_of(f"<think>{wrong}</think>{good}"), EOS]
    response = thinking_server.chat(tools=TOOLS, max_tokens=500).json()
    message = response["choices"][0]["message"]
    assert message["reasoning_content"] == wrong
    assert message["tool_calls"][0]["function"]["arguments"] == GOOD[1]


def allows(matcher: GrammarMatcher, token: int) -> bool:
    return bool(matcher.mask[token // 8] >> token % 8 & 1)


@pytest.mark.parametrize("form", [WITH_CONTROL_TOKEN, HERMES], ids=["marker", "text"])
def test_control_tokens(tokenizer: Tokenizer, form: Any) -> None:
    """A control token that is a marker begins a call; the others behave as they do without a grammar."""
    other = min(tokenizer.special_ids - {EOS, IM_START, *ids_of("</s><|im_end|>")})
    with serving(tokenizer, AnswerForm(tool_format=form)) as server:
        matcher = constrained(server).grammar
        assert matcher is not None
        opening = [IM_START] if form is WITH_CONTROL_TOKEN else ids_of(form.opening)
        for token in (*ids_of("So"), other, *ids_of(" "), other, *opening):
            assert allows(matcher, token)
            matcher.advance([token])
        assert not allows(matcher, EOS)
        assert not allows(matcher, ids_of("x")[0])
        before = "[" if form is WITH_CONTROL_TOKEN else "\n"
        assert allows(matcher, ids_of(before)[0])


def test_calls_as_python_writes_them(tokenizer: Tokenizer) -> None:
    """Keyword arguments in the order of the schema; a schema that has no such form allows objects only."""
    trip = {
        "type": "object",
        "properties": {
            "to": {"$ref": "#/$defs/city"},
            "days": {"type": "integer", "maximum": 9},
            "class": {"type": "string"},
        },
        "required": ["to"],
        "$defs": {"city": {"enum": ["Oslo", "Rome"]}},
    }
    either = {"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}
    tools = [
        function("trip", trip, strict=True),
        function("get-either", either, strict=True),
        function("free"),
        function("now", strict=True),
    ]
    with serving(tokenizer, AnswerForm(tool_format=PYTHONIC)) as server:
        check(
            server,
            {
                '[trip(to="Oslo")]': True,
                'Off we go: [trip(to="Rome", days=3), now()]': True,
                '[trip(days=3, to="Rome")]': False,
                '[trip(to="Bonn")]': False,
                "[trip(days=3)]": False,
                '[trip(to="Rome", days=10)]': False,
                '[trip(to="Rome", class="x")]': False,
                "[now(x=1)]": False,
                "[free(x=1, y=[true, null])]": True,
                "[free()]": True,
                "[get-either(a=1)]": False,
                "[a] (b), [trip], [1, 2] and trip(1)": True,
            },
            tools=tools,
        )
        server.engine.script = [*ids_of('[trip(to="Rome", days=3)]'), EOS]
        choice = server.chat(tools=tools, max_tokens=500).json()["choices"][0]
        assert json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"]) == {
            "to": "Rome",
            "days": 3,
        }


def test_strings_of_python_calls_mean_what_they_say_as_json(tokenizer: Tokenizer) -> None:
    """Escapes that Python reads differently from JSON must not be written."""
    with serving(tokenizer, AnswerForm(tool_format=PYTHONIC)) as server:
        matcher = constrained(server).grammar
        for token in ids_of('[get_weather(city="\\'):
            matcher.advance([token])
        assert allows(matcher, ids_of("n")[0])
        assert not allows(matcher, ids_of("/")[0])
        assert not allows(matcher, ids_of("x")[0])


def test_refusals(server: Any) -> None:
    bad = function("bad", {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}})
    for fields, param in (
        ({"tools": [STRICT], "ignore_eos": True}, "ignore_eos"),
        (
            {"tools": [STRICT, {**bad, "function": {**bad["function"], "strict": True}}]},
            "tools[1].function.parameters",
        ),
    ):
        response = server.chat(**fields)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
    assert server.chat(tools=[bad]).status_code == 200
    assert server.chat(tools=[bad, STRICT]).status_code == 200
