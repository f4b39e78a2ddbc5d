"""Calls that max_tokens cuts: no markup becomes content, and what there is of the arguments stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import ids_of
from running_server import RunningServer, events
from tool_requests import CALL, TOOLS, WITH_CONTROL_TOKEN, folded, serving

from vinfer.text.answer_form import AnswerForm
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import HERMES, LLAMA3_JSON, PYTHONIC, ToolFormat

ARGUMENTS = '{"city": "Oslo"}'
CALLS: dict[str, tuple[ToolFormat, str]] = {
    "hermes": (HERMES, CALL),
    "llama3": (LLAMA3_JSON, '{"name": "get_weather", "parameters": {"city": "Oslo"}}'),
    "mistral": (WITH_CONTROL_TOKEN, '<|im_start|>[{"name": "get_weather", "arguments": {"city": "Oslo"}}]'),
    "pythonic": (PYTHONIC, '[get_weather(city="Oslo")]'),
}


@pytest.fixture(scope="module", params=CALLS)
def cut(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Iterator[tuple[RunningServer, str]]:
    tool_format, text = CALLS[request.param]
    with serving(tokenizer, AnswerForm(tool_format=tool_format)) as server:
        yield server, text


def choices(server: RunningServer, length: int, **fields: Any) -> Iterator[dict[str, Any]]:
    """Yield the choice of a cut answer, whole and streamed."""
    body = {"tools": TOOLS, "max_tokens": length, **fields}
    response = server.chat(**body)
    assert response.status_code == 200, response.text
    yield response.json()["choices"][0]
    choice = folded(events(server.chat(**body, stream=True).text))
    # A stream cannot tell null from an empty text.
    choice["message"]["content"] = choice["message"]["content"] or None
    yield choice


def test_a_required_call_cut_anywhere(cut: tuple[RunningServer, str]) -> None:
    server, text = cut
    ids = ids_of(text) if "<|im_start|>" not in text else [2, *ids_of(text.removeprefix("<|im_start|>"))]
    server.engine.script = ids
    begun = 0
    for length in range(1, len(ids)):
        for choice in choices(server, length, tool_choice="required"):
            message = choice["message"]
            assert choice["finish_reason"] == "length"
            assert message["content"] is None
            for call in message.get("tool_calls", []):
                begun += 1
                assert call["function"]["name"] == "get_weather"
                assert ARGUMENTS.startswith(call["function"]["arguments"])
    assert begun >= 2


def test_a_call_that_the_model_chose(tokenizer: Tokenizer) -> None:
    """Once the whole marker is there, what follows is no text; before that it may be."""
    with serving(tokenizer, AnswerForm(tool_format=HERMES)) as server:
        said = "Let me see. "
        server.engine.script = ids_of(said + CALL)
        marker_end = len(said + "<tool_call>")
        for length in range(len(said), len(said + CALL)):
            for choice in choices(server, length):
                content = choice["message"]["content"]
                assert choice["finish_reason"] == "length"
                if length >= marker_end:
                    assert content == said.strip()
                else:
                    assert (said + CALL)[:length].rstrip() == content.rstrip()


@pytest.mark.parametrize("text", ["[Note that", "[1, 2", '{"a": 1'])
def test_text_that_only_looks_like_a_call_is_text(cut: tuple[RunningServer, str], text: str) -> None:
    server, _ = cut
    server.engine.script = ids_of(text)
    for choice in choices(server, len(text)):
        assert choice["message"]["content"] == text


def test_a_response_with_a_cut_call(tokenizer: Tokenizer) -> None:
    with serving(tokenizer, AnswerForm(tool_format=HERMES)) as server:
        server.engine.script = ids_of(CALL)
        tool = {"type": "function", **TOOLS[0]["function"]}
        body = {"model": "fake", "input": "hi", "tools": [tool], "tool_choice": "required"}
        for length in range(1, len(CALL)):
            answer = server.http.post("/v1/responses", json={**body, "max_output_tokens": length}).json()
            assert answer["status"] == "incomplete"
            texts = [part["text"] for item in answer["output"] for part in item.get("content", [])]
            assert "".join(texts) == ""
