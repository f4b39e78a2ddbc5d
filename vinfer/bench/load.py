"""Sends a load: concurrent streams, each sending one request after another.

Runs on one event loop. Knows nothing of statistics and tables.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from vinfer.bench.client import Endpoint, Record, complete
from vinfer.errors import AnswerError

# One token each in most vocabularies.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business"
)

# Tried in this order until the server accepts one: other servers do not know all of our fields.
DIALECTS: tuple[dict[str, Any], ...] = (
    {"ignore_eos": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"ignore_eos": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}},
    {},
)


@dataclasses.dataclass(frozen=True)
class Load:
    """What came of a load.

    Attributes:
        records: of the requests that were answered.
        failures: one message per request that was not.
        wall_seconds: from the first request to the end of the last.
        cpu_seconds: CPU time of this process meanwhile.
    """

    streams: int
    records: tuple[Record, ...]
    failures: tuple[str, ...]
    wall_seconds: float
    cpu_seconds: float


class Prompts:
    """An endless sequence of prompts without a common prefix, so that no prefix cache helps.

    Args:
        num_words: fewest and most words of a prompt; each length between them is as likely.
    """

    def __init__(self, num_words: tuple[int, int], seed: int | str) -> None:
        self._num_words = num_words
        self._random = random.Random(seed)  # noqa: S311 - words, no secrets
        self._numbers: Iterator[int] = itertools.count(self._random.randrange(1000, 5000))

    def next(self) -> str:
        words = self._random.choices(WORDS.split(), k=self._random.randint(*self._num_words))
        return f"{' '.join(words)} {next(self._numbers)}:"


async def negotiate(endpoint: Endpoint, prompts: Prompts) -> dict[str, Any]:
    """Return the fields of `DIALECTS` that this server accepts.

    Raises:
        AnswerError: it accepts none of them; the message has its answer to the plainest one.
    """
    refusal: AnswerError | None = None
    for dialect in DIALECTS:
        try:
            await complete(endpoint, endpoint.body(prompts.next(), max_tokens=2, temperature=0, **dialect))
        except AnswerError as error:
            refusal = error
        else:
            return dialect
    assert refusal is not None
    raise refusal


async def send_load(
    endpoint: Endpoint, next_body: Callable[[], dict[str, Any]], *, streams: int, rounds: int
) -> Load:
    """Keep `streams` requests open until each stream has sent `rounds` of them."""

    async def one_stream() -> list[Record | str]:
        return [await _attempt(endpoint, next_body()) for _ in range(rounds)]

    started, cpu_started = time.perf_counter(), time.process_time()
    ended = list(itertools.chain(*await asyncio.gather(*(one_stream() for _ in range(streams)))))
    return Load(
        streams=streams,
        records=tuple(each for each in ended if isinstance(each, Record)),
        failures=tuple(each for each in ended if isinstance(each, str)),
        wall_seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu_started,
    )


async def _attempt(endpoint: Endpoint, body: dict[str, Any]) -> Record | str:
    """Return the record of a request, or why it has none."""
    try:
        return await complete(endpoint, body)
    except AnswerError as error:
        return error.message
