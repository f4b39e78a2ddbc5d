"""Each tool call format over HTTP: constrained answers, control tokens as markers, and its templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_engine import EOS, IM_START, TEMPLATE, FakeEngine, ids_of, served_model
from running_server import RunningServer, run
from tool_requests import TIME, TOOLS, WEATHER, WITH_CONTROL_TOKEN, follows, prompt_text, serving

from vinfer.config import ServerConfig
from vinfer.engine.grammar import GrammarMatcher
from vinfer.server.model_table import ModelTable
from vinfer.text.answer_form import AnswerForm, answer_form
from vinfer.text.chat_template import ChatTemplate
from vinfer.text.control_tokens import ControlTokens
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import FORMATS, HERMES, LLAMA3_JSON, MISTRAL, PYTHONIC, ToolFormat

CALLS = [("get_weather", '{"city": "Oslo"}'), ("get_time", "{}")]
TEMPLATES = Path(__file__).parents[2] / "text" / "chat_templates"


@pytest.fixture(scope="module", params=sorted(FORMATS))
def form_server(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Iterator[RunningServer]:
    with serving(tokenizer, AnswerForm(tool_format=FORMATS[request.param])) as server:
        server.tool_format = FORMATS[request.param]
        yield server


def test_constrained_answers_are_of_the_format(form_server: Any, tokenizer: Tokenizer) -> None:
    tool_format: ToolFormat = form_server.tool_format
    two = tool_format.written(CALLS)
    one = tool_format.written(CALLS[:1])
    wrong = tool_format.written([("get_weather", "{}")])
    for text, expected in ((two, True), (one, True), (wrong, False), (two[:-1], False), ("Hi", False)):
        form_server.engine.reset()
        assert form_server.chat(tools=TOOLS, tool_choice="required").status_code == 200
        assert follows(form_server.engine.requests[0], text) is expected, text
    form_server.engine.script = [*ids_of(two), EOS]
    choice = form_server.chat(tools=TOOLS, max_tokens=500).json()["choices"][0]
    assert [
        (call["function"]["name"], call["function"]["arguments"]) for call in choice["message"]["tool_calls"]
    ] == CALLS
    # The text that describes the tools shows the form that is parsed.
    example = tool_format.written([("<function-name>", "<args-json-object>")])
    assert example in prompt_text_of(form_server, tokenizer)


def prompt_text_of(server: RunningServer, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(server.engine.requests[-1].prompt_ids, skip_special_tokens=False)


def allows(matcher: GrammarMatcher, token: int) -> bool:
    return bool(matcher.mask[token // 8] >> token % 8 & 1)


def test_a_marker_that_is_a_control_token(tokenizer: Tokenizer) -> None:
    with serving(tokenizer, AnswerForm(tool_format=WITH_CONTROL_TOKEN)) as server:
        assert server.chat(tools=[TIME], tool_choice="required").status_code == 200
        matcher = server.engine.requests[0].grammar
        assert matcher is not None
        assert allows(matcher, IM_START)
        assert not allows(matcher, ids_of("<")[0])
        body = '[{"name": "get_time", "arguments": {}}]'
        for token in (IM_START, *ids_of(body)):
            assert allows(matcher, token)
            matcher.advance([token])
        assert allows(matcher, EOS)
        server.engine.script = [*ids_of("So"), IM_START, *ids_of(body), EOS]
        message = server.chat(tools=[TIME], max_tokens=100).json()["choices"][0]["message"]
        assert message["content"] == "So"
        assert message["tool_calls"][0]["function"]["name"] == "get_time"
        assert len(message["tool_calls"][0]["id"]) == 9
        # Without tools it is an ordinary control token.
        assert server.chat(max_tokens=100).json()["choices"][0]["message"]["content"] == f"So{body}"


def test_tools_can_be_switched_off(tokenizer: Tokenizer) -> None:
    with serving(tokenizer, AnswerForm(tool_format=None)) as server:
        for fields in ({}, {"tool_choice": "required"}):
            response = server.chat(tools=[WEATHER], **fields)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "tools"
            assert "models[0].tool_parser" in response.json()["error"]["message"]
        assert server.chat(tools=[WEATHER], tool_choice="none").status_code == 200
        assert "Tools" not in prompt_text(server, tokenizer)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {}, control_tokens=ControlTokens(()))


TAUGHT = "{{ tools | tojson }} %s {{ messages[0].content }}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((TEMPLATES / "qwen3.jinja").read_text(), HERMES),
        ((TEMPLATES / "llama3.jinja").read_text(), LLAMA3_JSON),
        (TAUGHT % "[TOOL_CALLS]", MISTRAL),
        (TAUGHT % "[func_name1(params_name1=params_value1)]", PYTHONIC),
        (TAUGHT % "<|python_tag|>", LLAMA3_JSON),
        # Unsupported formats and templates without tools: the tools are described in text.
        (TAUGHT % "[TOOL_CALLS]name[ARGS]", None),
        (TAUGHT % "<tool_call><function=name>", None),
        (TAUGHT % "<|tool|>", None),
        (TEMPLATE + "<tool_call>", None),
    ],
)
def test_a_template_says_which_format_it_is(source: str, expected: ToolFormat | None) -> None:
    form = answer_form("auto", template(source))
    assert form.tool_format == (expected or HERMES)
    assert form.has_tools_as_text is (expected is None)


def test_the_config_decides() -> None:
    qwen, plain = template((TEMPLATES / "qwen3.jinja").read_text()), template(TEMPLATE)
    assert answer_form("pythonic", qwen, reasoning_parser="none") == AnswerForm(
        tool_format=PYTHONIC, has_tools_as_text=False
    )
    assert answer_form("mistral", plain) == AnswerForm(tool_format=MISTRAL, has_tools_as_text=True)
    assert answer_form("none", qwen, reasoning_parser="none") == AnswerForm(
        tool_format=None, has_tools_as_text=False
    )
    assert answer_form("auto", None) == AnswerForm(tool_format=HERMES, has_tools_as_text=True)


def test_a_template_that_refuses_system_messages(tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    )
    engine, models = FakeEngine(max_model_len=2048), ModelTable(["fake"])
    models.serve(served_model(engine, tokenizer, chat_template=source))
    with run(ServerConfig(port=0), models, engine) as server:
        assert server.chat(tools=[TIME]).status_code == 200
        text = prompt_text(server, tokenizer)
        assert text.startswith("<|im_start|>user\n# Tools\n\n")
        assert text.endswith("</tool_call>\n\nhi<|im_end|>")
