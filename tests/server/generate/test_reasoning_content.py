"""`reasoning_content` over HTTP, whole and streamed, with tools and with constrained answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import EOS, TEMPLATE, FakeEngine, ids_of, served_model
from running_server import RunningServer, events, run
from tool_requests import CALL, TOOLS

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.answer_form import answer_form
from vinfer.text.chat_template import ChatTemplate
from vinfer.text.control_tokens import ControlTokens
from vinfer.text.tokenizer import Tokenizer


def serving(tokenizer: Tokenizer, template: str, **fields: Any) -> Any:
    engine, models = FakeEngine(max_model_len=2048), ModelTable(["fake"])
    model = served_model(engine, tokenizer, chat_template=template)
    form = dataclasses.replace(model.answer_form, **fields)
    models.serve(dataclasses.replace(model, answer_form=form))
    return run(ServerConfig(port=0), models, engine)


@pytest.fixture(scope="module")
def thinking_server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    with serving(tokenizer, TEMPLATE, has_reasoning=True) as server:
        yield server


def say(server: RunningServer, text: str, **fields: Any) -> dict[str, Any]:
    """Return the whole message; the streamed one must be the same."""
    server.engine.script = [*ids_of(text), EOS]
    message: dict[str, Any] = server.chat(max_tokens=500, **fields).json()["choices"][0]["message"]
    chunks = events(server.chat(max_tokens=500, stream=True, **fields).text)
    for key in ("content", "reasoning_content"):
        streamed = "".join(chunk["choices"][0]["delta"].get(key) or "" for chunk in chunks)
        assert streamed == (message.get(key) or "")
    return message


def test_thoughts_are_apart(thinking_server: RunningServer) -> None:
    assert say(thinking_server, "<think>\nHm.\n</think>\n\nHi") == {
        "role": "assistant",
        "content": "Hi",
        "reasoning_content": "Hm.",
        "refusal": None,
        "annotations": [],
    }
    assert "reasoning_content" not in say(thinking_server, "Hi")


def test_calls_come_after_thoughts_not_in_them(thinking_server: RunningServer) -> None:
    message = say(thinking_server, f"<think>{CALL}</think>\n{CALL}", tools=TOOLS)
    assert message["reasoning_content"] == CALL
    assert message["content"] is None
    assert len(message["tool_calls"]) == 1


def test_a_constrained_answer_is_no_thought(thinking_server: RunningServer) -> None:
    text = '{"a": "<think>"}'
    assert say(thinking_server, text, response_format={"type": "json_object"})["content"] == text


def test_a_template_that_opens_the_tag(tokenizer: Tokenizer) -> None:
    # An end tag in another branch closes the prompt, as in the templates of such models.
    template = TEMPLATE.replace("assistant\n", "assistant\n<think>\n") + "{# </think> #}"
    with serving(tokenizer, template) as server:
        message = say(server, "Hm.</think>Hi")
        assert (message["reasoning_content"], message["content"]) == ("Hm.", "Hi")
    with serving(tokenizer, template, has_reasoning=False) as server:
        assert say(server, "Hm.</think>Hi")["content"] == "Hm.</think>Hi"


def test_the_template_or_the_config_says_whether_it_thinks() -> None:
    plain, thinking = (
        ChatTemplate(TEMPLATE + end, {}, control_tokens=ControlTokens(())) for end in ("", "{# </think> #}")
    )
    assert not answer_form("auto", plain).has_reasoning
    assert answer_form("auto", thinking).has_reasoning
    assert answer_form("auto", plain, reasoning_parser="think").has_reasoning
    assert not answer_form("auto", thinking, reasoning_parser="none").has_reasoning


@pytest.mark.parametrize("include", [True, False])
def test_include_reasoning(thinking_server: RunningServer, include: bool) -> None:
    message = say(thinking_server, "<think>Hm</think>Hi", include_reasoning=include)
    assert message["content"] == "Hi"
    assert message.get("reasoning_content") == ("Hm" if include else None)


def test_effort_none_turns_reasoning_off(tokenizer: Tokenizer) -> None:
    """Through `enable_thinking`, if the template reads it; a model that does not reason needs no switch."""
    switch = "{{ messages[0].content }}{% if enable_thinking is false %}!{% endif %}"
    for template, has_reasoning, expected in [
        (switch, True, "hi!"),
        (switch, False, "hi"),
        ("{{ messages[0].content }}", False, "hi"),
        ("{{ messages[0].content }}", True, None),
    ]:
        with serving(tokenizer, template, has_reasoning=has_reasoning) as server:
            for fields, path in (
                (
                    {"reasoning_effort": "none", "messages": [{"role": "user", "content": "hi"}]},
                    "chat/completions",
                ),
                ({"reasoning": {"effort": "none"}, "input": "hi"}, "responses"),
            ):
                server.engine.reset()
                response = server.http.post(f"/v1/{path}", json={"model": "fake", **fields})
                if expected is None:
                    assert response.status_code == 400
                    assert "reasons in any case" in response.json()["error"]["message"]
                else:
                    assert response.status_code == 200, response.text
                    prompt_ids = server.engine.requests[0].prompt_ids
                    assert tokenizer.decode(prompt_ids, skip_special_tokens=False) == expected
            if expected == "hi!":
                contradiction = {"enable_thinking": True}
                response = server.chat(reasoning_effort="none", chat_template_kwargs=contradiction)
                assert response.status_code == 400
