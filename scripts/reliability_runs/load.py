"""Load: many streams, a burst beyond the queue, refusals, and fair shares."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import time
from collections import Counter
from typing import Any

import openai

from reliability_runs.client import Answer, at_most, completion, post
from reliability_runs.figure import Figure, Run, judged, milliseconds, percentile
from reliability_runs.server import SMOLLM2, TinyServer, tiny_server, wait_until
from vinfer.bench.client import Endpoint, Record, complete
from vinfer.errors import AnswerError

NUM_STREAMS, NUM_TOKENS = 200, 64
NUM_BURST, BURST_QUEUE = 4096, 96
NUM_REFUSALS = 200
NUM_SHORT, NUM_LONG = 50, 60


async def _stream(port: int, prompt: str, key: str | None = None, **fields: Any) -> Record | str:
    """Return the record of a stream, or why it failed."""
    endpoint = Endpoint(f"http://127.0.0.1:{port}", "tiny", key, is_chat=False)
    wanted = {"temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}, **fields}
    try:
        return await complete(endpoint, endpoint.body(prompt, **wanted))
    except AnswerError as error:
        return str(error)


def streams(run: Run) -> Figure:
    """Measure figure 1."""
    prompts = [f"Story number {i}" for i in range(NUM_STREAMS)]
    with tiny_server(run.folder / "streams", models=[{"max_queue": 512}]) as server:

        async def all_of_them() -> tuple[list[Record | str], list[Answer]]:
            streamed = [
                functools.partial(_stream, server.port, prompt, max_tokens=NUM_TOKENS) for prompt in prompts
            ]
            whole = [
                functools.partial(post, server.port, completion(prompt=prompt, max_tokens=NUM_TOKENS))
                for prompt in prompts
            ]
            return await at_most(NUM_STREAMS, streamed), await at_most(16, whole)

        records, answers = asyncio.run(all_of_them())
    errors = [record for record in records if isinstance(record, str)]
    whole = [json.loads(answer.body)["choices"][0]["text"] for answer in answers]
    good = [record for record in records if isinstance(record, Record)]
    wrong = sum(
        isinstance(record, Record) and (record.text != text or record.num_tokens != NUM_TOKENS)
        for record, text in zip(records, whole, strict=True)
    )
    gaps = [
        later.seconds - earlier.seconds
        for record in good
        for earlier, later in zip(record.arrivals, record.arrivals[1:], strict=False)
    ]
    gap = percentile(gaps, 0.99)
    return judged(
        "1",
        f"{NUM_STREAMS} streams of {NUM_TOKENS} tokens at once: no error, no token lost or twice, p99 "
        "between chunks < 250 ms",
        f"{len(errors)} errors, {wrong} texts that differ from the whole answer, p99 {milliseconds(gap)}",
        not errors and not wrong and gap < 0.25,
    )


def burst(run: Run) -> list[Figure]:
    """Measure figures 2 and 3 with one burst."""
    with tiny_server(run.folder / "burst", models=[{"max_queue": BURST_QUEUE}]) as server:
        body = completion(max_tokens=16)
        began = time.monotonic()
        answers = asyncio.run(
            at_most(NUM_BURST, [functools.partial(post, server.port, body) for _ in range(NUM_BURST)])
        )
        seconds = time.monotonic() - began
        idle = wait_until(server.is_idle, "an idle server")
        statuses = Counter(answer.status for answer in answers)
        refused = _refusals(server)
    counted = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    return [
        judged(
            "2",
            f"{NUM_BURST} requests at once, queue of {BURST_QUEUE}: each gets 200, 429 or 503, and gauges 0",
            f"{counted} in {seconds:.1f} s; idle {idle:.1f} s later",
            set(statuses) <= {200, 429, 503} and statuses[200] > 0,
        ),
        refused,
    ]


def _refusals(server: TinyServer) -> Figure:
    async def full() -> tuple[list[Answer], bool]:
        long = completion(max_tokens=400)
        fillers = [asyncio.ensure_future(post(server.port, long)) for _ in range(BURST_QUEUE + 16)]
        await asyncio.to_thread(
            wait_until, lambda: server.metrics()["num_requests_waiting"] >= BURST_QUEUE - 8, "a full queue"
        )
        # Requests that arrive between two that leave are served; they are not what is measured.
        answers = await at_most(4, [functools.partial(post, server.port, completion())] * NUM_REFUSALS)
        client = asyncio.create_task(asyncio.to_thread(_patient_client, server.url))
        await asyncio.sleep(1)
        for filler in fillers:
            filler.cancel()
        await asyncio.gather(*fillers, return_exceptions=True)
        return [answer for answer in answers if answer.status == 429], await client

    refused, is_patient_served = asyncio.run(full())
    slowest = percentile([answer.seconds for answer in refused] or [math.inf], 0.99)
    is_right = all(
        int(answer.headers["retry-after"]) >= 1 and json.loads(answer.body)["error"]["code"] == "queue_full"
        for answer in refused
    )
    return judged(
        "3",
        "429 with a full queue: p99 < 100 ms, an error object, Retry-After >= 1; the openai client with "
        "retries is served",
        f"{len(refused)} refusals, p99 {milliseconds(slowest) if refused else '-'}; client served: "
        f"{is_patient_served}",
        bool(refused) and is_right and slowest < 0.1 and is_patient_served,
    )


def _patient_client(url: str) -> bool:
    """Whether the official client is served after it waited as it was told."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=8, timeout=120) as client:
        try:
            client.completions.create(model="tiny", prompt="Once", max_tokens=1)
        except openai.APIError:
            return False
    return True


def long_prompt(run: Run) -> Figure:
    """Measure figure 4: one long prompt beside short ones."""
    # As long as this model allows.
    long = "word " * 90
    with tiny_server(run.folder / "long") as server:

        async def first_tokens(has_long: bool) -> list[float]:
            tasks = [asyncio.ensure_future(_stream(server.port, long, max_tokens=8))] if has_long else []
            short = [
                functools.partial(_stream, server.port, f"Hi {i}", max_tokens=4) for i in range(NUM_SHORT)
            ]
            records = await at_most(8, short)
            await asyncio.gather(*tasks)
            return [
                record.arrivals[0].seconds - record.sent_seconds
                for record in records
                if isinstance(record, Record)
            ]

        asyncio.run(first_tokens(has_long=True))
        alone = percentile(asyncio.run(first_tokens(has_long=False)), 0.99)
        beside = percentile(asyncio.run(first_tokens(has_long=True)), 0.99)
    return judged(
        "4",
        f"{NUM_SHORT} short prompts beside the longest one: TTFT p99 <= 3 x that without it",
        f"{milliseconds(alone)} without, {milliseconds(beside)} with it: {beside / alone:.1f} x; the prompt "
        "has 450 tokens, not 8,000, which the tiny model does not have",
        beside <= 3 * alone,
    )


def fair_shares(run: Run) -> Figure:
    """Measure the fairness between two API keys, on a model that takes longer than the clients."""
    folder = run.folder / "fair"
    folder.mkdir(parents=True)
    keys = folder / "keys"
    keys.write_text("first-key\nsecond-key\n")
    keys.chmod(0o600)
    config = {"api_keys_file": str(keys), "metrics_public": True}
    model = {**SMOLLM2, "max_queue_per_key": 64, "max_queue": 128}
    with tiny_server(folder, server=config, models=[model]) as server:

        async def first_token(i: int) -> float:
            record = await _stream(server.port, f"Hi {i}", "second-key", max_tokens=4)
            assert isinstance(record, Record), record
            return record.arrivals[0].seconds - record.sent_seconds

        async def measure() -> tuple[list[float], list[float]]:
            unloaded = [await first_token(i) for i in range(20)]
            longs = [
                asyncio.ensure_future(_stream(server.port, f"Long {i}", "first-key", max_tokens=128))
                for i in range(NUM_LONG)
            ]
            await asyncio.sleep(2)
            loaded = []
            while sum(long.done() for long in longs) < NUM_LONG // 2:
                loaded.append(await first_token(1000 + len(loaded)))
                await asyncio.sleep(0.1)
            await asyncio.gather(*longs)
            return unloaded, loaded

        unloaded, loaded = asyncio.run(measure())
    before, now = percentile(unloaded, 0.5), percentile(loaded, 0.5)
    return judged(
        "fairness",
        f"one key has {NUM_LONG} long requests, another sends one short at a time: TTFT <= 3 x that unloaded",
        f"SmolLM2-135M: median {milliseconds(before)} unloaded, {milliseconds(now)} beside them: "
        f"{now / before:.1f} x (p99 {milliseconds(percentile(loaded, 0.99))}, {len(loaded)} requests)",
        now <= 3 * before,
    )
