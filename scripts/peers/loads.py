"""The loads of `scripts/bench --peers`: each is measured on one side in one turn.

The same turn of the same load has the same prompts on every side, and no other turn has them, so that a
prefix cache helps only where prompts are meant to begin alike.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmark.shared_prefix import run_shared

from peers.turns import Side, Values
from vinfer.bench.client import Record, complete
from vinfer.bench.figures import Figures, chunk_gaps, percentile
from vinfer.bench.load import Prompts, send_load
from vinfer.errors import AnswerError

EXTRA_TOKENS = 6
"""A prompt of SmolLM2 has so many tokens more than words: a number and a colon."""
FIXED_TOKENS = 67
DRAWN_TOKENS = (8, 700)
LONG_TOKENS = 2000
NEW_TOKENS = 64
WARM_UP_TOKENS = 8
_BESIDE_TOKENS = 320
_UNDISTURBED_TOKENS = 64


def prompts(tokens: int | tuple[int, int], *key: Any) -> Prompts:
    """Return prompts of a length, or of lengths drawn from a range, that only this key has."""
    low, high = (tokens, tokens) if isinstance(tokens, int) else tokens
    seed = ":".join(map(str, (low, high, *key)))
    return Prompts((low - EXTRA_TOKENS, high - EXTRA_TOKENS), seed)


def throughput(
    tokens: int | tuple[int, int], streams: int, rounds: int, new_tokens: int = NEW_TOKENS
) -> Callable[[Side, int], Any]:
    """Return the measurement of a load of so many streams, each with `rounds` requests."""

    async def measure(side: Side, turn: int) -> Values:
        if turn == 0:
            warm = prompts(tokens, streams, new_tokens, "warm-up")
            await _send(side, warm, streams, rounds=1, new_tokens=WARM_UP_TOKENS)
        drawn = prompts(tokens, streams, new_tokens, turn)
        return await _send(side, drawn, streams, rounds=rounds, new_tokens=new_tokens)

    return measure


async def _send(side: Side, drawn: Prompts, streams: int, *, rounds: int, new_tokens: int) -> Values:
    def next_body() -> dict[str, Any]:
        return side.endpoint.body(drawn.next(), **side.fields, max_tokens=new_tokens)

    load = await send_load(side.endpoint, next_body, streams=streams, rounds=rounds)
    for failure in load.failures:
        raise AnswerError(failure)
    figures = Figures.of(load)
    spans = [
        (record.arrivals[-1].seconds - record.arrivals[0].seconds) / (record.num_tokens - 1)
        for record in load.records
        if record.num_tokens > 1
    ]
    return {
        "tokens_per_second": figures.tokens_per_second,
        "ttft_p50": figures.ttft_seconds.p50,
        "ttft_p99": figures.ttft_seconds.p99,
        "tpot_p50": statistics.median(spans) if spans else 0.0,
        "prompt_tokens": figures.prompt_tokens,
        "num_tokens": figures.num_tokens,
        "client_cpu_fraction": figures.client_cpu_fraction,
    }


def lone(tokens: int, requests: int) -> Callable[[Side, int], Any]:
    """Return the measurement of prompts that are alone on the server, one after another."""

    async def measure(side: Side, turn: int) -> Values:
        if turn == 0:
            warm = prompts(tokens, "lone", "warm-up")
            await _send(side, warm, 1, rounds=1, new_tokens=WARM_UP_TOKENS)
        drawn = prompts(tokens, "lone", turn)
        return await _send(side, drawn, 1, rounds=requests, new_tokens=WARM_UP_TOKENS)

    return measure


async def shared(side: Side, turn: int) -> Values:
    """Measure requests with one system prompt, and a chat of six turns."""
    if turn == 0:
        await run_shared(side.endpoint, dict(side.fields))
    figures = await run_shared(side.endpoint, dict(side.fields))
    turns = {f"turn_{n}_ttft": seconds for n, seconds in enumerate(figures.turn_ttft_seconds, 1)}
    computed = {} if figures.computed_tokens is None else {"computed_tokens": figures.computed_tokens}
    return {
        "wall_seconds": figures.wall_seconds,
        "ttft_p50": figures.ttft_seconds,
        "prompt_tokens": figures.prompt_tokens,
        **computed,
        **turns,
    }


def beside(streams: int) -> Callable[[Side, int], Any]:
    """Return the measurement of a long prompt that arrives while so many streams are answered."""

    async def measure(side: Side, turn: int) -> Values:
        alone = await _ttft(side, prompts(LONG_TOKENS, "alone", turn).next())
        drawn = prompts(FIXED_TOKENS, "beside", turn)
        watched = [_Watched(side, drawn.next()) for _ in range(streams)]
        tasks = [asyncio.create_task(each.run()) for each in watched]
        await asyncio.gather(*(each.is_undisturbed.wait() for each in watched))
        sent = time.perf_counter()
        own = await _ttft(side, prompts(LONG_TOKENS, "long", turn).next())
        answered = sent + own
        records = await asyncio.gather(*tasks)
        return gaps_of(records, sent, answered) | {
            "alone_ttft": alone,
            "ttft": own,
            "ttft_ratio": own / alone,
        }

    return measure


def gaps_of(records: list[Record], sent: float, answered: float) -> Values:
    """Return the longest gap of streams before a prompt was sent, and while it was prefilled.

    Raises:
        AnswerError: the streams ended too early to say anything.
    """
    began = max(record.arrivals[0].seconds for record in records)
    before, during = [], []
    for record in records:
        if record.arrivals[-1].seconds < answered:
            raise AnswerError("a stream ended before the long prompt had its first token")
        for gap, arrival in zip(chunk_gaps(record), record.arrivals[1:], strict=True):
            if arrival.seconds - gap >= began and arrival.seconds <= sent:
                before.append(gap)
            elif arrival.seconds > sent and arrival.seconds - gap < answered:
                during.append(gap)
    if not before or not during:
        raise AnswerError("the streams sent no event before the long prompt, or none during its prefill")
    return {
        "gap_undisturbed": max(before),
        "gap_undisturbed_p50": percentile(sorted(before), 0.5),
        "gap_disturbed": max(during),
        "gap_ratio": max(during) / max(before),
    }


class _Watched:
    """A stream that says when it has had enough tokens without a disturbance, or has ended."""

    def __init__(self, side: Side, prompt: str) -> None:
        self._side = side
        self._body = side.endpoint.body(prompt, **side.fields, max_tokens=_BESIDE_TOKENS)
        self._num_tokens = 0
        self.is_undisturbed = asyncio.Event()

    async def run(self) -> Record:
        try:
            return await complete(self._side.endpoint, self._body, on_tokens=self._count)
        finally:
            self.is_undisturbed.set()

    def _count(self, num_tokens: int) -> None:
        self._num_tokens += max(1, num_tokens)
        if self._num_tokens >= _UNDISTURBED_TOKENS:
            self.is_undisturbed.set()


async def _ttft(side: Side, prompt: str) -> float:
    body = side.endpoint.body(prompt, **side.fields, max_tokens=WARM_UP_TOKENS)
    record = await complete(side.endpoint, body)
    return record.arrivals[0].seconds - record.sent_seconds
