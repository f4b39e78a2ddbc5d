"""Loads whose prompts begin alike: many requests with one system prompt, and a chat that grows turn by turn.

Runs on the benchmark's event loop, on one server or on two alternately. Every run has a new system prompt and
a new chat, so that nothing is left of the run before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from vinfer.bench.client import Endpoint, Record, complete
from vinfer.bench.load import WORDS

NUM_REQUESTS = 24
STREAMS = 4
SYSTEM_WORDS = 556
"""560 tokens for SmolLM2."""
QUESTION_WORDS = 25
ANSWER_TOKENS = 16
NUM_TURNS = 6
TURN_WORDS = 60
TURN_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class SharedFigures:
    """The results of one run.

    Attributes:
        wall_seconds: from the first request with the system prompt to the end of the last.
        ttft_seconds: median over those requests.
        prompt_tokens: of all of them together.
        computed_tokens: those that the server did not take from its cache; None if it does not say.
        turn_ttft_seconds: time to the first token of each turn of the chat.
    """

    wall_seconds: float
    ttft_seconds: float
    prompt_tokens: int
    computed_tokens: int | None
    turn_ttft_seconds: tuple[float, ...]


async def run_shared(endpoint: Endpoint, fields: dict[str, Any]) -> SharedFigures:
    """Run both loads once.

    Raises:
        AnswerError: any request failed.
    """
    words = _Words()
    system = words.some(SYSTEM_WORDS)
    bodies = iter(
        [
            endpoint.body(f"{system}\n{words.some(QUESTION_WORDS)}:", **fields, max_tokens=ANSWER_TOKENS)
            for _ in range(NUM_REQUESTS)
        ]
    )

    async def one_stream() -> list[Record]:
        # The streams draw from one iterator: each takes the next request when it is done with the last.
        return [await complete(endpoint, body) for body in bodies]

    started = time.perf_counter()
    records = list(itertools.chain(*await asyncio.gather(*(one_stream() for _ in range(STREAMS)))))
    wall_seconds = time.perf_counter() - started
    cached = [record.num_cached_tokens for record in records]
    num_prompt_tokens = sum(record.num_prompt_tokens or 0 for record in records)
    return SharedFigures(
        wall_seconds=wall_seconds,
        ttft_seconds=statistics.median(map(_ttft, records)),
        prompt_tokens=num_prompt_tokens,
        computed_tokens=None if None in cached else num_prompt_tokens - sum(n or 0 for n in cached),
        turn_ttft_seconds=await _chat(endpoint, words, fields),
    )


async def _chat(endpoint: Endpoint, words: _Words, fields: dict[str, Any]) -> tuple[float, ...]:
    """Ask turn by turn, each with all that came before; return the time to the first token of each turn."""
    transcript = ""
    times = []
    for _ in range(NUM_TURNS):
        transcript += f"User: {words.some(TURN_WORDS)}\nAssistant:"
        record = await complete(endpoint, endpoint.body(transcript, **fields, max_tokens=TURN_TOKENS))
        times.append(_ttft(record))
        transcript += f"{record.text}\n"
    return tuple(times)


class _Words:
    """An endless sequence of words that no earlier run had."""

    def __init__(self) -> None:
        self._random = random.Random()

    def some(self, number: int) -> str:
        return " ".join(self._random.choices(WORDS.split(), k=number))


def _ttft(record: Record) -> float:
    return record.arrivals[0].seconds - record.sent_seconds


def median_of_shared(runs: Sequence[SharedFigures]) -> SharedFigures:
    """Return the median of every figure over repeats."""
    computed = [run.computed_tokens for run in runs if run.computed_tokens is not None]
    return SharedFigures(
        wall_seconds=statistics.median(run.wall_seconds for run in runs),
        ttft_seconds=statistics.median(run.ttft_seconds for run in runs),
        prompt_tokens=statistics.median_low(run.prompt_tokens for run in runs),
        computed_tokens=statistics.median_low(computed) if computed else None,
        turn_ttft_seconds=tuple(
            statistics.median(turn) for turn in zip(*(run.turn_ttft_seconds for run in runs), strict=True)
        ),
    )


def shared_lines(title: str, figures: SharedFigures) -> str:
    """Return one server's figures for people."""
    turns = " ".join(f"{1000 * seconds:.0f}" for seconds in figures.turn_ttft_seconds)
    computed = "unknown" if figures.computed_tokens is None else f"{figures.computed_tokens}"
    return (
        f"\n{title}\n"
        f"shared system prompt: {NUM_REQUESTS} requests in {figures.wall_seconds:.2f} s, "
        f"TTFT p50 {1000 * figures.ttft_seconds:.0f} ms, "
        f"{computed} of {figures.prompt_tokens} prompt tokens computed\n"
        f"chat of {NUM_TURNS} turns: TTFT {turns} ms"
    )


def shared_ratios(a: SharedFigures, b: SharedFigures) -> dict[str, float]:
    """Return A / B for every figure of time."""
    return {
        "wall_seconds": a.wall_seconds / b.wall_seconds,
        "ttft_seconds": a.ttft_seconds / b.ttft_seconds,
        "last_turn_ttft_seconds": a.turn_ttft_seconds[-1] / b.turn_ttft_seconds[-1],
    }
