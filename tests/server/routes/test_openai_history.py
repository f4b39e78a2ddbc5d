"""What openai-python hands back is good input: its last messages, sent as they came, for three turns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from fake_engine import EOS, ids_of
from running_server import RunningServer
from tool_requests import CALL, CITY, serving

from vinfer.text.answer_form import AnswerForm
from vinfer.text.tokenizer import Tokenizer
from vinfer.text.tool_calls.formats import HERMES

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "strict": True,
        "parameters": {**CITY, "additionalProperties": False},
    },
}


class Form(pydantic.BaseModel):
    a: int


@pytest.fixture(scope="module")
def full(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    form = AnswerForm(tool_format=HERMES, has_reasoning=True)
    with serving(tokenizer, form) as server:
        yield server


@pytest.fixture
def client(full: RunningServer) -> Iterator[openai.OpenAI]:
    full.engine.reset()
    with openai.OpenAI(base_url=f"{full.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def parsed(client: openai.OpenAI, messages: list[Any], response_format: Any) -> Any:
    completion = client.chat.completions.parse(
        model="fake", messages=messages, tools=[TOOL], response_format=response_format, max_tokens=400
    )
    return completion.choices[0].message


def streamed(client: openai.OpenAI, messages: list[Any], response_format: Any) -> Any:
    with client.chat.completions.stream(
        model="fake", messages=messages, tools=[TOOL], response_format=response_format, max_tokens=400
    ) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion().choices[0].message


def created(client: openai.OpenAI, messages: list[Any], response_format: Any) -> Any:
    completion = client.chat.completions.create(model="fake", messages=messages, tools=[TOOL], max_tokens=400)
    return completion.choices[0].message


def as_object(message: Any) -> Any:
    return message


def as_dict(message: Any) -> Any:
    return message.model_dump()


def as_json(message: Any) -> Any:
    return json.loads(message.to_json(exclude_unset=False, exclude_none=False))


@pytest.mark.parametrize("ask", [parsed, streamed, created])
@pytest.mark.parametrize("written", [as_object, as_dict, as_json])
def test_chat(full: RunningServer, client: openai.OpenAI, ask: Any, written: Any) -> None:
    """A call, its result, an answer and another question; the prompts have only what was said."""
    messages: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
    full.engine.script = [*ids_of(f"<think>Hm</think>{CALL}"), EOS]
    message = ask(client, messages, openai.NOT_GIVEN)
    (call,) = message.tool_calls
    # A stream cannot tell null from an empty text.
    content = message.content
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    messages += [written(message), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    full.engine.script = [*ids_of('<think>So</think>{"a": 12}'), EOS]
    message = ask(client, messages, openai.NOT_GIVEN)
    assert message.content == '{"a": 12}'
    messages += [written(message), {"role": "user", "content": "Thanks"}]
    full.engine.script = [*ids_of("Bye"), EOS]
    assert ask(client, messages, openai.NOT_GIVEN).content == "Bye"
    plain = [
        messages[0],
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [call.model_dump(exclude={"function": {"parsed_arguments"}})],
        },
        messages[2],
        {"role": "assistant", "content": '{"a": 12}'},
        messages[4],
    ]
    full.engine.script = [*ids_of("Bye"), EOS]
    client.chat.completions.create(model="fake", messages=plain, tools=[TOOL], max_tokens=400)
    *_, with_extras, without = full.engine.requests
    assert with_extras.prompt_ids == without.prompt_ids


def test_a_parsed_answer(full: RunningServer, client: openai.OpenAI) -> None:
    full.engine.script = [*ids_of('{"a": 12}'), EOS]
    question: Any = {"role": "user", "content": "hi"}
    completion = client.chat.completions.parse(
        model="fake", messages=[question], response_format=Form, max_tokens=50
    )
    message = completion.choices[0].message
    assert message.parsed == Form(a=12)
    answer = client.chat.completions.with_raw_response.create(
        model="fake", messages=[question, message.to_dict(warnings=False), question], max_tokens=1
    )
    assert answer.headers["x-vinfer-ignored"] == "parsed"


@pytest.mark.parametrize("written", [as_object, as_dict, as_json])
def test_responses(full: RunningServer, client: openai.OpenAI, written: Any) -> None:
    tools: Any = [{"type": "function", **TOOL["function"]}]
    items: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
    full.engine.script = [*ids_of(f"<think>Hm</think>Wait. {CALL}"), EOS]
    with client.responses.stream(
        model="fake", input=items, tools=tools, include=["reasoning.encrypted_content"], store=False
    ) as stream:
        for _ in stream:
            pass
        output = stream.get_final_response().output
    items += map(written, output)
    (call,) = (item for item in output if item.type == "function_call")
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    full.engine.script = [*ids_of("Take a coat."), EOS]
    answer = client.responses.parse(model="fake", input=items, tools=tools, reasoning={"summary": "auto"})
    assert answer.output_text == "Take a coat."
    items += [*map(written, answer.output), {"role": "user", "content": "Thanks", "phase": "final_answer"}]
    full.engine.script = [*ids_of("Bye"), EOS]
    assert client.responses.create(model="fake", input=items, tools=tools).output_text == "Bye"
