"""Continuous batching as a client sees it: a late request is batched with the running ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
from server_process import MODEL, ServerProcess

NUM_LONG = 8
LONG_TOKENS = 120


async def stream(http: httpx.AsyncClient, on_token: Callable[[], None], **fields: Any) -> int:
    """Send a streamed completion, report each chunk of text, and return the number of tokens."""
    body = {
        "model": MODEL,
        "prompt": "The history of the railway begins",
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    num_tokens = 0
    async with http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
            if event["choices"] and event["choices"][0]["text"]:
                on_token()
    return num_tokens


async def join_late(url: str) -> tuple[int, list[int], int]:
    """Return how many long requests had ended at the late one's first token, and all token counts."""
    num_begun = num_ended = 0
    all_begun = asyncio.Event()
    ended_at_first_token: list[int] = []

    async def long_request(http: httpx.AsyncClient) -> int:
        nonlocal num_ended
        is_first = True

        def on_token() -> None:
            nonlocal is_first, num_begun
            if is_first:
                is_first = False
                num_begun += 1
                if num_begun == NUM_LONG:
                    all_begun.set()

        num_tokens = await stream(http, on_token, max_tokens=LONG_TOKENS)
        num_ended += 1
        return num_tokens

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        running = [asyncio.create_task(long_request(http)) for _ in range(NUM_LONG)]
        async with asyncio.timeout(600):
            await all_begun.wait()
        late = await stream(
            http, lambda: ended_at_first_token.append(num_ended), prompt="Meanwhile in Paris", max_tokens=4
        )
        return ended_at_first_token[0], await asyncio.gather(*running), late


def test_a_late_request_is_answered_before_the_running_ones_end(server: ServerProcess) -> None:
    before = server.metrics()
    num_ended, num_long_tokens, num_late_tokens = asyncio.run(join_late(server.url))
    after = server.metrics()
    assert num_ended == 0
    assert num_long_tokens == [LONG_TOKENS] * NUM_LONG
    assert num_late_tokens == 4
    # Dispatch N + 1 is enqueued before the tokens of N are read; while all requests decode, this holds for
    # every dispatch except the first.
    grown = {name: after[name] - before[name] for name in after if name.endswith("dispatches_total")}
    assert grown["num_overlapped_dispatches_total"] > grown["num_decode_dispatches_total"] // 2
