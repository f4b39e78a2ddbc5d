"""Anthropic's official client, unmodified: whole, streamed, tools in two turns, counts, errors, helpers."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import anthropic
import pydantic
import pytest
from fake_engine import (
    EOS,
    PROMPT_IDS,
    START,
    FakeEngine,
    fake_images,
    ids_of,
    letters,
    served_model,
    with_manifest,
)
from messages_requests import CALL, HI, TOOL
from PIL import Image
from running_server import RunningServer, run

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable
from vinfer.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def thinking_server(tokenizer: Tokenizer) -> Iterator[RunningServer]:
    engine, models = FakeEngine(max_model_len=4096), ModelTable(["fake"])
    model = served_model(engine, tokenizer)
    form = dataclasses.replace(model.answer_form, has_reasoning=True)
    models.serve(dataclasses.replace(model, answer_form=form))
    with run(ServerConfig(port=0), models, engine) as server:
        yield server


@pytest.fixture
def server(thinking_server: RunningServer) -> RunningServer:
    """A model that may reason; its engine has been reset."""
    thinking_server.engine.reset()
    return thinking_server


@pytest.fixture
def client(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=server.url, api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


ASKED: Any = {"model": "fake", "messages": HI, "max_tokens": 500}


def test_whole(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**{**ASKED, "max_tokens": 5}, system="", extra_body={"top_k": 5})
    (block,) = message.content
    assert block.type == "text"
    assert block.text.isalpha()
    assert len(block.text) == 5
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 5)
    assert message._request_id


def test_streamed(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**{**ASKED, "max_tokens": 5}) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(pieces) == letters(START, 5)
    assert message.content[0].type == "text"
    assert message.content[0].text == letters(START, 5)
    assert message.usage.input_tokens == len(PROMPT_IDS)
    assert message.usage.output_tokens == 5
    kinds = [event.type for event in client.messages.create(**{**ASKED, "max_tokens": 1}, stream=True)]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"


def test_tools_in_two_turns(server: RunningServer, client: anthropic.Anthropic) -> None:
    server.engine.script = [*ids_of(f"<think>Hm.</think>So: {CALL}"), EOS]
    tools: Any = [TOOL]
    with client.messages.stream(**ASKED, tools=tools) as stream:
        first = stream.get_final_message()
    thought, _, call = first.content
    assert thought.type == "thinking"
    assert thought.thinking == "Hm."
    assert thought.signature
    assert call.type == "tool_use"
    assert call.input == {"city": "Oslo"}
    assert first.stop_reason == "tool_use"
    server.engine.script = [*ids_of("It is cold."), EOS]
    results: Any = [{"type": "tool_result", "tool_use_id": call.id, "content": "-5"}]
    turns: Any = [*HI, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = client.messages.create(model="fake", messages=turns, max_tokens=500, tools=tools)
    assert second.content[0].type == "text"
    assert second.content[0].text == "It is cold."
    assert second.stop_reason == "end_turn"


def test_the_clients_own_loop(server: RunningServer, client: anthropic.Anthropic) -> None:
    """`tool_runner` calls a Python function and sends its result back until the model answers with text.

    It first asks the server to keep the conversation, and does without once that is refused.
    """
    asked = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Weather of a city."""
        asked.append(city)
        server.engine.script = [*ids_of("It is cold."), EOS]
        return "-5"

    server.engine.script = [*ids_of(CALL), EOS]
    runner = client.beta.messages.tool_runner(model="fake", max_tokens=500, messages=HI, tools=[get_weather])
    message = runner.until_done()
    assert asked == ["Oslo"]
    assert message.content[0].type == "text"
    assert message.content[0].text == "It is cold."


class City(pydantic.BaseModel):
    name: str
    population: int


def test_parse(server: RunningServer, client: anthropic.Anthropic) -> None:
    server.engine.script = [*ids_of('{"name": "Oslo", "population": 5}'), EOS]
    message = client.messages.parse(**ASKED, output_format=City)
    assert message.parsed_output == City(name="Oslo", population=5)


def test_count_tokens(client: anthropic.Anthropic) -> None:
    assert client.messages.count_tokens(model="fake", messages=HI).input_tokens == len(PROMPT_IDS)


def test_an_image(tokenizer: Tokenizer) -> None:
    """In a message, and in the result of a tool: both reach a model that takes images."""
    file = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    use: Any = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Oslo"}}
    result: Any = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [image]}
    turns: Any = [
        {"role": "user", "content": [image, {"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    template = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content or [] %}{{ '<s>' if part.type == 'image' else part.text }}{% endfor %}"
        "{% endif %}{{ m.tool_calls }}{% endfor %}"
    )
    engine, models = FakeEngine(max_model_len=4096), ModelTable(["fake"])
    model = served_model(engine, tokenizer, chat_template=template)
    models.serve(with_manifest(model, images=fake_images(2)))
    with (
        run(ServerConfig(port=0), models, engine) as server,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        client.messages.create(**{**ASKED, "messages": turns})
        counted = client.messages.count_tokens(model="fake", messages=turns).input_tokens
        (request,) = engine.requests
    assert len(request.images) == 2
    assert counted == len(request.prompt_ids)


def test_errors_are_the_clients_own(server: RunningServer, client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens") as refused:
        client.messages.create(**{**ASKED, "max_tokens": 0})
    assert refused.value.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ASKED, "model": "claude"})
    image: Any = {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    with pytest.raises(anthropic.BadRequestError, match="takes only text"):
        client.messages.create(**{**ASKED, "messages": [{"role": "user", "content": [image]}]})
    server.engine.queue_full = True
    with pytest.raises(anthropic.RateLimitError):
        client.messages.create(**ASKED)


def test_error_in_a_stream(server: RunningServer, client: anthropic.Anthropic) -> None:
    server.engine.fail_after_tokens = 2
    server.engine.failure = RuntimeError("x")
    with (
        client.messages.stream(**ASKED) as stream,
        pytest.raises(anthropic.APIStatusError, match="request id"),
    ):
        list(stream)


def test_async_crowd(server: RunningServer) -> None:
    server.engine.seconds_per_event = 0.01

    async def crowd() -> list[Any]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none") as client:
            asked = {**ASKED, "max_tokens": 5}
            return await asyncio.gather(*(client.messages.create(**asked) for _ in range(12)))

    assert {message.content[0].text for message in asyncio.run(crowd())} == {letters(START, 5)}
