"""Nothing that a request can ask for compiles a program, and a seed has the same result alone and batched."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx
import pytest
from server_process import MODEL, ServerProcess

PROMPT_LENGTHS = (5, 17, 40, 64, 65, 120, 256, 257, 400)
CROWDS = (1, 2, 3, 5, 8, 16)

Body = dict[str, Any]

SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}

# One per parameter, including ones that are off; combined with every temperature.
KNOBS: tuple[Body, ...] = (
    {},
    {"seed": 7},
    {"seed": 2**64 - 1, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"top_k": 1},
    {"top_k": -1, "top_p": 1.0, "min_p": 0.0},
    {"top_p": 0.5},
    {"min_p": 0.2},
    {"presence_penalty": 1.5, "frequency_penalty": -1.0},
    {"repetition_penalty": 1.3},
    {"logit_bias": {"260": 5.0, "28": -100.0}},
    {"logprobs": 5},
    {"min_tokens": 6},
    {"ignore_eos": True},
    {"n": 2, "seed": 3},
    {"stop": ["e", ". "]},
    {"stop_token_ids": [30, 28]},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"structured_outputs": {"regex": "[a-z ]{5,40}"}, "n": 2},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
)
TEMPERATURES = (0.0, 0.7, 1.5)


def mixed_load(text_ids: list[int]) -> list[Body]:
    """Return requests that differ in every parameter and in prompt and answer length."""
    combinations = itertools.product(TEMPERATURES, KNOBS)
    lengths = itertools.cycle(PROMPT_LENGTHS)
    return [
        {
            "model": MODEL,
            "prompt": text_ids[37 * i : 37 * i + next(lengths)],
            "temperature": temperature,
            "max_tokens": 6 + i % 11,
            **knobs,
        }
        for i, (temperature, knobs) in enumerate(combinations)
    ]


def seeded_load(text_ids: list[int]) -> list[Body]:
    """Return requests whose samples are determined by their seeds."""
    ways: tuple[Body, ...] = (
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
        {"temperature": 1.2, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    return [
        {
            "model": MODEL,
            "prompt": text_ids[53 * i : 53 * i + length],
            "max_tokens": 16,
            "seed": 1000 + i,
            "logprobs": 0,
            **way,
        }
        for i, (length, way) in enumerate(itertools.product((5, 33, 70), ways))
    ]


async def send(http: httpx.AsyncClient, body: Body) -> httpx.Response:
    response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response


async def in_crowds(url: str, bodies: list[Body]) -> None:
    """Send all requests, with the numbers at once taken from `CROWDS` in turn."""
    waiting = iter(bodies)
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        for size in itertools.cycle(CROWDS):
            crowd = list(itertools.islice(waiting, size))
            if not crowd:
                return
            await asyncio.gather(*(send(http, body) for body in crowd))


def choices(response: httpx.Response) -> list[tuple[str, list[str]]]:
    return [(choice["text"], choice["logprobs"]["tokens"]) for choice in response.json()["choices"]]


async def alone_and_in_a_crowd(url: str, bodies: list[Body], others: list[Body]) -> tuple[list, list]:
    """Return the answers to the same requests sent one by one, then batched with others."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        alone = [choices(await send(http, body)) for body in bodies]
        pairs = zip(bodies, others, strict=True)
        crowd = await asyncio.gather(*(send(http, body) for pair in pairs for body in pair))
    return alone, [choices(response) for response in crowd[::2]]


def test_a_mixed_load_compiles_nothing(server: ServerProcess, text_ids: list[int]) -> None:
    load = mixed_load(text_ids)
    before = server.metrics()
    asyncio.run(in_crowds(server.url, load))
    # Several blocks of the KV cache, and a prompt in several chunks.
    assert server.complete(prompt=text_ids[:900], max_tokens=4).status_code == 200
    after = server.metrics()
    num_choices = sum(body.get("n", 1) for body in load) + 1
    assert after["request_success_total"] - before["request_success_total"] == num_choices
    assert after["post_ready_compiles_total"] == 0


def test_a_seed_draws_the_same_in_any_company(server: ServerProcess, text_ids: list[int]) -> None:
    bodies = seeded_load(text_ids)
    others = [
        {"model": MODEL, "prompt": text_ids[11 * i : 11 * i + 90], "max_tokens": 24, "temperature": 1.5}
        for i in range(len(bodies))
    ]
    alone, crowd = asyncio.run(alone_and_in_a_crowd(server.url, bodies, others))
    assert crowd == alone
    # Different seeds give different answers, so it is not because everything is greedy.
    assert len({answer[0][0] for answer in alone}) == len(bodies)
    assert server.metrics()["post_ready_compiles_total"] == 0


@pytest.mark.parametrize("seeds", [(5, 5), (5, 6)])
def test_a_seed_alone_decides(server: ServerProcess, seeds: tuple[int, int]) -> None:
    texts = [
        server.complete(seed=seed, temperature=1.0, max_tokens=16).json()["choices"][0]["text"]
        for seed in seeds
    ]
    assert (texts[0] == texts[1]) is (seeds[0] == seeds[1])
