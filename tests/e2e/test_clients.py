"""Unmodified openai-python against the real model, and requests that a server must refuse and survive."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from server_process import MODEL, ServerProcess

QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_sync(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.model_extra is not None
    assert answer.usage.model_extra["tokens_per_second"] > 0
    assert answer.usage.model_extra["processing_time"] > 0


def test_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert len(chunks) > 3
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_async_both_ways(server: ServerProcess) -> None:
    async def both() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused") as client:
            whole = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
            stream = client.chat.completions.create(
                model=MODEL, messages=QUESTION, temperature=0, stream=True
            )
            answer, events = await asyncio.gather(whole, stream)
            pieces = [event.choices[0].delta.content or "" async for event in events]
            return answer.choices[0].message.content, "".join(pieces)

    assert asyncio.run(both()) == (ANSWER, ANSWER)


def test_plain_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["Once upon a time", "The sun"], max_tokens=5, temperature=0, n=2, logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in answer.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert answer.choices[0].logprobs is not None
    assert "".join(answer.choices[0].logprobs.tokens or ()) == texts[0]


class Capital(pydantic.BaseModel):
    city: str
    is_in_europe: bool
    continent: Literal["Africa", "Asia", "Europe"]


def test_parse_into_a_model(client: openai.OpenAI) -> None:
    """The client converts the type to a strict JSON Schema, and the answer to an object."""
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, temperature=0, response_format=Capital
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Capital)
    assert "Paris" in answer.choices[0].message.parsed.city


def test_responses(server: ServerProcess) -> None:
    """Whole, streamed and parsed; the client validates each body and event as strictly as it can."""
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="unused", max_retries=0, _strict_response_validation=True
    ) as client:
        asked: Any = {"model": MODEL, "input": QUESTION, "temperature": 0}
        whole = client.responses.create(**asked)
        assert (whole.status, whole.output_text) == ("completed", ANSWER)
        with client.responses.stream(**asked) as stream:
            texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
            assert stream.get_final_response().usage == whole.usage
        assert len(texts) > 1
        assert "".join(texts) == ANSWER
        parsed = client.responses.parse(**asked, text_format=Capital)
        assert parsed.output_parsed is not None
        assert "Paris" in parsed.output_parsed.city


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "easydel"


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt", messages=QUESTION)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=-1)
    assert refused.value.param == "temperature"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": QUESTION, **fields}


LONG = "word " * 9000
BAD: dict[str, tuple[Any, int, str | None]] = {
    "broken JSON": (b'{"model": "smollm2", "messages": [', 400, None),
    "no JSON": (b"\xff\xfe\x00", 400, None),
    "a list": ([1, 2], 400, None),
    "no messages": ({"model": MODEL}, 400, "messages"),
    "empty messages": (chat(messages=[]), 400, "messages"),
    "unknown role": (chat(messages=[{"role": "wizard", "content": "hi"}]), 400, "messages[0].role"),
    "no role": (chat(messages=[{"content": "hi"}]), 400, "messages[0].role"),
    "prompt too long": (chat(messages=[{"role": "user", "content": LONG}]), 400, "messages"),
    "answer too long": (chat(min_tokens=100_000), 400, "min_tokens"),
    "negative temperature": (chat(temperature=-0.5), 400, "temperature"),
    "temperature is text": (chat(temperature="hot"), 400, "temperature"),
    "infinite": (b'{"model": "smollm2", "messages": [], "temperature": 1e999}', 400, None),
    "unknown field": (chat(temprature=1), 400, "temprature"),
    "unsupported": (chat(functions=[{"name": "f"}]), 400, "functions"),
    "no such tool": (chat(tools=[], tool_choice="required"), 400, "tool_choice"),
    "unknown model": ({"model": "gpt", "messages": QUESTION}, 404, "model"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(server: ServerProcess, name: str) -> None:
    body, status, param = BAD[name]
    if isinstance(body, bytes):
        headers = {"Content-Type": "application/json"}
        response = server.http.post("/v1/chat/completions", content=body, headers=headers)
    else:
        response = server.http.post("/v1/chat/completions", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert len(error["message"]) > 10
    assert param is None or error["param"] == param


def test_the_server_goes_on(server: ServerProcess) -> None:
    assert server.http.post("/v1/chat/completions", content=b"{").status_code in (400, 415)
    assert server.chat(QUESTION[0]["content"]).json()["choices"][0]["message"]["content"] == ANSWER
    assert "Traceback" not in server.log
