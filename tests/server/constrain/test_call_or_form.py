"""A form and tools in one request: a call or the form, as the model begins; and reasoning before either.

llguidance itself decides what a grammar allows, with the tokenizer of the tests.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import EOS, TEMPLATE, FakeEngine, ids_of, served_model
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import RunningServer, events, run
from tool_requests import CITY, WITH_CONTROL_TOKEN, follows, function, say

from vinfer.config import ServerConfig
from vinfer.engine.request import Request
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.events import Text
from vinfer.text.tool_calls.formats import FORMATS, HERMES, ToolFormat
from vinfer.text.tool_calls.parser import ToolCallParser

TOOLS = [function("get_weather", CITY, strict=True), function("find", CITY)]
GOOD, WRONG = ("get_weather", '{"city": "Oslo"}'), ("get_weather", '{"town": "Oslo"}')
LOOSE = ("find", '{"id": "x"}')
SCHEMA = {"type": "object", "properties": {"degrees": {"type": "integer"}}, "required": ["degrees"]}
NAMED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
ANSWER = '{"degrees": 20}'
# Every field that constrains an answer, with one that it allows and one that it does not.
CONSTRAINTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "json_schema": ({"response_format": NAMED}, ANSWER, '{"degrees": "x"}'),
    "json_object": ({"response_format": {"type": "json_object"}}, '{"a": [1]}', "[1]"),
    "json": ({"structured_outputs": {"json": SCHEMA}}, ANSWER, "20"),
    "regex": ({"structured_outputs": {"regex": "[a-c]+/[0-9]"}}, "abc/1", "abd/1"),
    "choice": ({"structured_outputs": {"choice": ["yes", 'n"o']}}, 'n"o', "maybe"),
    "grammar": (
        # Its rules have the names of ours.
        {"structured_outputs": {"grammar": 'start: answer call\nanswer: "A"\ncall: thought\nthought: /b+/'}},
        "Abb",
        "A",
    ),
}


def serving(tokenizer: Tokenizer, template: str = TEMPLATE, **form: Any) -> Any:
    engine, models = FakeEngine(max_model_len=4096), ModelTable(["fake"])
    model = served_model(engine, tokenizer, chat_template=template)
    answers = dataclasses.replace(model.answer_form, **form)
    models.serve(dataclasses.replace(model, answer_form=answers))
    return run(ServerConfig(port=0), models, engine)


@pytest.fixture(scope="module", params=[*sorted(FORMATS), "control_token"])
def server(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Iterator[Any]:
    form = FORMATS.get(request.param, WITH_CONTROL_TOKEN)
    with serving(tokenizer, tool_format=form) as server:
        server.tool_format = form
        yield server


@pytest.fixture(scope="module")
def thinking_server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    with serving(tokenizer, tool_format=HERMES, has_reasoning=True) as server:
        yield server


def asked(server: RunningServer, **fields: Any) -> Request:
    """Return the engine's request for these fields."""
    server.engine.reset()
    response = server.chat(**fields)
    assert response.status_code == 200, response.text
    return server.engine.requests[0]


def accepts(server: RunningServer, text: str, **fields: Any) -> bool:
    return follows(asked(server, **fields), text)


def written(form: ToolFormat, *calls: tuple[str, str]) -> str | None:
    """Return calls in a format; None if the tests' tokenizer cannot write its marker as text."""
    return None if form is WITH_CONTROL_TOKEN else form.written(list(calls))


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_call_or_the_form(server: Any, name: str) -> None:
    fields, good, wrong = CONSTRAINTS[name]
    form = server.tool_format
    assert accepts(server, good, tools=TOOLS, **fields)
    assert accepts(server, good, tools=TOOLS, tool_choice="auto", **fields)
    assert not accepts(server, wrong, tools=TOOLS, **fields)
    assert not accepts(server, "Let me see.", tools=TOOLS, **fields)
    for calls, is_good in (([GOOD], True), ([GOOD, LOOSE], True), ([WRONG], False), ([("rm", "{}")], False)):
        text = written(form, *calls)
        # `{"a": 1}` is an object, whatever it says.
        if text is not None and (is_good or name != "json_object" or not form.begins_with_call):
            assert accepts(server, text, tools=TOOLS, **fields) is is_good, text
    one = {"tools": TOOLS, "parallel_tool_calls": False, **fields}
    if form not in (WITH_CONTROL_TOKEN, FORMATS["llama3_json"]):
        assert accepts(server, written(form, GOOD), **one)
        assert not accepts(server, written(form, GOOD, GOOD), **one)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_without_tools_to_call_only_the_form(server: Any, name: str) -> None:
    fields, good, _ = CONSTRAINTS[name]
    text = written(server.tool_format, GOOD)
    for tools in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        assert accepts(server, good, **tools, **fields)
        if text is not None and name != "json_object":
            assert not accepts(server, text, **tools, **fields)


def test_python_calls_begin_too(tokenizer: Tokenizer) -> None:
    with serving(tokenizer, tool_format=FORMATS["pythonic"]) as server:
        fields = {"tools": TOOLS, "response_format": NAMED}
        assert accepts(server, '[get_weather(city="Oslo")]', **fields)
        assert not accepts(server, '[get_weather(town="Oslo")]', **fields)
        assert accepts(server, ANSWER, **fields)


def test_it_is_read_as_it_begins(server: Any) -> None:
    """Whole and streamed."""
    server.engine.reset()
    form = server.tool_format
    fields: dict[str, Any] = {"tools": TOOLS, "response_format": NAMED}
    choice = say(server, ANSWER, **fields)
    assert (choice["message"]["content"], choice["finish_reason"]) == (ANSWER, "stop")
    assert "tool_calls" not in choice["message"]
    text = written(form, GOOD)
    if text is not None and form is not FORMATS["mistral"]:
        choice = say(server, text, **fields)
        assert choice["message"]["content"] is None
        assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == [GOOD[1]]
        # What looks like a call inside of the form is text.
        inside = json.dumps({"a": text})
        choice = say(server, inside, tools=TOOLS, response_format={"type": "json_object"})
        assert choice["message"]["content"] == inside


@settings(deadline=None)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    texts=st.lists(
        st.sampled_from(["x", " ", "\n", "<tool_call>", "[", "{", "[TOOL_CALLS]", '{"a": 1}']), max_size=6
    ),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=40),
)
def test_an_answer_that_does_not_begin_with_a_call_is_text(
    name: str, texts: list[str], cuts: list[int]
) -> None:
    form = FORMATS[name]
    text = "x" + "".join(texts) + form.written([GOOD])
    parser = ToolCallParser(form, {"get_weather"}, calls_come_first=True)
    events, read = [], 0
    for length in [*cuts, len(text)]:
        events += parser.push(text[read : read + length])
        read += length
    events += parser.finish()
    assert all(isinstance(event, Text) for event in events)
    assert "".join(event.text for event in events) == text


def test_a_schema_that_cannot_be_enforced_names_its_field(server: Any) -> None:
    broken = {"type": "object", "properties": {"a": {"not": {}}}}
    response = server.chat(
        tools=[function("f", CITY), function("g", broken, strict=True)], response_format=NAMED
    )
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools[1].function.parameters")
    named = {"type": "json_schema", "json_schema": {"name": "answer", "schema": broken}}
    response = server.chat(tools=TOOLS, response_format=named)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format.json_schema.schema"


THOUGHTS = ("", "Hm.", "\nI may write <tool_call> or {.\n", "日本 </thin", "<think>")


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_reasoning_is_free_and_the_answer_after_it_is_not(thinking_server: RunningServer, name: str) -> None:
    fields, good, wrong = CONSTRAINTS[name]
    for thought in THOUGHTS:
        assert accepts(thinking_server, f"<think>{thought}</think>\n\n{good}", **fields)
        assert not accepts(thinking_server, f"<think>{thought}</think>\n\n{wrong}", **fields)
        assert not accepts(thinking_server, f"<think>{thought}</think>", **fields)
        assert not accepts(thinking_server, f"<think>{thought}", **fields)
    assert accepts(thinking_server, good, **fields)
    with_tools = {"tools": TOOLS, **fields}
    assert accepts(thinking_server, f"<think>Hm.</think>{HERMES.written([GOOD])}", **with_tools)
    assert accepts(thinking_server, f"<think>Hm.</think>{good}", **with_tools)
    assert not accepts(thinking_server, f"<think>Hm.</think>{HERMES.written([WRONG])}", **with_tools)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_reasoning_before_a_required_call(thinking_server: RunningServer, choice: Any) -> None:
    fields = {"tools": TOOLS, "tool_choice": choice}
    good, wrong = HERMES.written([GOOD]), HERMES.written([WRONG])
    for thought in THOUGHTS:
        assert accepts(thinking_server, f"<think>{thought}</think>\n\n{good}", **fields)
        assert not accepts(thinking_server, f"<think>{thought}</think>\n\n{wrong}", **fields)
        assert not accepts(thinking_server, f"<think>{thought}</think>Hello", **fields)
    assert accepts(thinking_server, good, **fields)
    thinking_server.engine.script = [*ids_of(f"<think>{wrong}</think>\n{good}"), EOS]
    message = thinking_server.chat(max_tokens=500, **fields).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (wrong, None)
    assert message["tool_calls"][0]["function"]["arguments"] == GOOD[1]


def test_control_tokens_in_reasoning(thinking_server: RunningServer, tokenizer: Tokenizer) -> None:
    matcher = asked(thinking_server, response_format=NAMED).grammar
    assert matcher is not None
    other = min(tokenizer.special_ids - {EOS, *ids_of("</s><|im_end|>")})
    for token in (*ids_of("<think>a"), other, *ids_of("b</think>{")):
        assert matcher.mask[token // 8] >> token % 8 & 1
        matcher.advance([token])


OPENS = TEMPLATE.replace("assistant\n", "assistant\n<think>\n") + "{# </think> #}"
OFF = (
    TEMPLATE.replace("{% if enable_thinking %}T{% endif %}", "")
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
OFF_BEFORE = TEMPLATE + "{# </think> #}"


def test_a_template_that_opens_thoughts(tokenizer: Tokenizer) -> None:
    with serving(tokenizer, OPENS) as server:
        assert accepts(server, f"Hm.</think>{ANSWER}", response_format=NAMED)
        # What has been opened must be closed.
        assert not accepts(server, ANSWER, response_format=NAMED)
        server.engine.script = [*ids_of(f"Hm.</think>\n{ANSWER}"), EOS]
        message = server.chat(max_tokens=500, response_format=NAMED).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Hm.", ANSWER)


@pytest.mark.parametrize("template", [OFF, OFF_BEFORE])
def test_thinking_that_is_switched_off(tokenizer: Tokenizer, template: str) -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    with serving(tokenizer, template) as server:
        for more in ({"response_format": NAMED}, {"tools": TOOLS, "tool_choice": "required"}):
            answer = ANSWER if "response_format" in more else HERMES.written([GOOD])
            assert accepts(server, f"<think>Hm.</think>{answer}", **more)
            assert accepts(server, answer, **more)
            assert accepts(server, answer, **more, **off)
            assert not accepts(server, f"<think>Hm.</think>{answer}", **more, **off)


@pytest.mark.parametrize(
    ("said", "answer", "reasoning", "content"),
    [
        ("<think>Hm", ".</think>Hi", ".", "Hi"),
        ("<think>Hm</think>Hi", " <think>", None, " <think>"),
        ("So", " it", None, " it"),
        ("", "<think>Hm</think>Hi", "Hm", "Hi"),
    ],
)
def test_a_continued_message_may_be_inside_its_reasoning(
    thinking_server: RunningServer, said: str, answer: str, reasoning: str | None, content: str
) -> None:
    thinking_server.engine.reset()
    thinking_server.engine.script = [*ids_of(answer), EOS]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": said}]
    body = thinking_server.chat(messages=messages, continue_final_message=True, max_tokens=99).json()
    message = body["choices"][0]["message"]
    assert (message.get("reasoning_content"), message["content"]) == (reasoning, content)


def test_special_tags(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models have the tags as control tokens, which no text can be."""
    monkeypatch.setattr("vinfer.text.reasoning.CLOSING", "<|im_start|>")
    with serving(tokenizer, has_reasoning=True, tool_format=HERMES) as server:
        matcher = asked(server, response_format=NAMED).grammar
        assert matcher is not None
        closing = tokenizer.token_to_id("<|im_start|>")
        assert closing is not None
        for token in (*ids_of("<think>a <|im_start|>"), closing, *ids_of("\n" + ANSWER), EOS):
            assert matcher.mask[token // 8] >> token % 8 & 1, token
            if token != EOS:
                matcher.advance([token])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_call_that_is_cut_off_leaks_no_markup(tokenizer: Tokenizer, name: str) -> None:
    """At every length, whole and streamed; what is there of the arguments is kept."""
    form = FORMATS[name]
    text = form.written([GOOD, ("find", "{}")])
    with serving(tokenizer, tool_format=form) as server:
        for more in ({"tool_choice": "required"}, {"response_format": NAMED}):
            if "response_format" in more and form in (FORMATS["llama3_json"], FORMATS["pythonic"]):
                continue  # until its name is read, the call may be the form
            server.engine.script = ids_of(text)
            for length in range(len(form.opening) + 1, len(text), 3):
                fields = {"tools": TOOLS, "max_tokens": length, **more}
                choice = server.chat(**fields).json()["choices"][0]
                assert choice["finish_reason"] == "length"
                assert choice["message"]["content"] is None
                calls = [call["function"] for call in choice["message"].get("tool_calls", ())]
                assert all(GOOD[1].startswith(call["arguments"]) for call in calls[:1])
                deltas = [
                    chunk["choices"][0]["delta"] for chunk in events(server.chat(**fields, stream=True).text)
                ]
                assert "".join(delta.get("content") or "" for delta in deltas) == ""
