"""The official client, unmodified: sync, async, streamed, its retries and its exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from fake_engine import START, letters
from running_server import RunningServer


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "hi"}],
        max_completion_tokens=5,
        logprobs=True,
        top_logprobs=1,
        extra_body={"top_k": 5, "min_tokens": 1},
    )
    assert answer.choices[0].message.content == letters(START, 5)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.content or ()) == 5


def test_chat_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == letters(START, 5)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


def test_async_crowd(server: RunningServer) -> None:
    server.engine.seconds_per_event = 0.01

    async def ask(client: openai.AsyncOpenAI, first: int, stream: bool) -> str:
        if not stream:
            whole = await client.completions.create(model="fake", prompt=[first], max_tokens=10)
            return whole.choices[0].text
        streamed = await client.completions.create(model="fake", prompt=[first], max_tokens=10, stream=True)
        return "".join([chunk.choices[0].text async for chunk in streamed])

    async def crowd() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, 4 + i, i % 2 == 0) for i in range(24)))

    assert asyncio.run(crowd()) == [letters(4 + i, 10) for i in range(24)]


def test_other_routes(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "easydel"
    assert client.completions.create(model="fake", prompt=[4, 5], max_tokens=3).choices[0].text == "JKL"


def test_errors_are_the_clients_own(server: RunningServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="fake", prompt="a", temperature=3)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt", prompt="a")
    assert unknown.value.code == "model_not_found"
    server.engine.queue_full = True
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="fake", prompt="a")


def test_error_in_a_stream(server: RunningServer, client: openai.OpenAI) -> None:
    server.engine.fail_after_tokens = 2
    server.engine.failure = RuntimeError("x")
    with client.completions.create(model="fake", prompt=[4], max_tokens=5, stream=True) as stream:
        texts = []
        with pytest.raises(openai.APIError, match="request id"):
            texts.extend(chunk.choices[0].text for chunk in stream)


def test_retry_after_a_full_queue(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    submit = server.engine.submit

    def full_at_first(request: object) -> object:
        nonlocal calls
        calls += 1
        server.engine.queue_full = calls == 1
        return submit(request)  # type: ignore[arg-type]

    monkeypatch.setattr(server.engine, "submit", full_at_first)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2) as client:
        assert client.completions.create(model="fake", prompt=[4], max_tokens=1).choices[0].text == "E"
    assert calls == 2
