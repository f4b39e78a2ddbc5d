"""Runs a load and computes its figures: concurrent streams, each sending one request after another.

Runs on the benchmark's event loop. Knows nothing of processes, tables or JSON.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import itertools
import random
import statistics
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmark.client import BenchError, Endpoint, Record, complete

# One token each in most vocabularies.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business"
)

IMAGE_SIDE = 64

# Tried in this order until the server accepts one: other servers do not know all of our fields.
DIALECTS: tuple[dict[str, Any], ...] = (
    {"ignore_eos": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"ignore_eos": True, "stream_options": {"include_usage": True}},
    {"stream_options": {"include_usage": True}},
    {},
)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and 99th percentile, in seconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(percentile(ordered, 0.5), percentile(ordered, 0.99))


@dataclasses.dataclass(frozen=True)
class Figures:
    """The results of one run of a load.

    Attributes:
        tokens_per_second: generated tokens over the wall time of the whole run.
        ttft_seconds: from sending a request to its first token.
        itl_seconds: per token, the gap before its event divided by the tokens in the event.
        chunk_gap_seconds: time between two events of one stream.
        e2e_seconds: from sending a request to the end of its stream.
        client_cpu_fraction: share of one core used by the client during the run.
    """

    streams: int
    num_requests: int
    num_tokens: int
    prompt_tokens: float
    tokens_per_second: float
    ttft_seconds: Spread
    itl_seconds: Spread
    chunk_gap_seconds: Spread
    e2e_seconds: Spread
    client_cpu_fraction: float


class Prompts:
    """An endless sequence of prompts without a common prefix, so that no prefix cache helps."""

    def __init__(self, num_words: int, seed: int) -> None:
        self._num_words = num_words
        self._random = random.Random(seed)
        self._numbers: Iterator[int] = itertools.count(self._random.randrange(1000, 5000))

    def next(self) -> str:
        words = self._random.choices(WORDS.split(), k=self._num_words)
        return f"{' '.join(words)} {next(self._numbers)}:"


class Images:
    """An endless sequence of different images, so that no feature cache helps."""

    def __init__(self) -> None:
        # Seeded per process: a server may have seen the images of an earlier run.
        self._random = random.Random()

    def next(self) -> str:
        """Return the data URL of a PNG file of noise."""
        rows = b"".join(b"\0" + self._random.randbytes(3 * IMAGE_SIDE) for _ in range(IMAGE_SIDE))
        # Eight bits per channel, three channels.
        header = struct.pack(">IIBBBBB", IMAGE_SIDE, IMAGE_SIDE, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        file = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        return "data:image/png;base64," + base64.b64encode(file).decode()


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Interpolate between the two nearest ranks of sorted values; return 0 if there are none."""
    if not ordered:
        return 0.0
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


async def negotiate(endpoint: Endpoint, prompts: Prompts) -> dict[str, Any]:
    """Return the fields of `DIALECTS` that this server accepts.

    Raises:
        BenchError: it accepts none of them; the message has its answer to the plainest one.
    """
    refusal: BenchError | None = None
    for dialect in DIALECTS:
        try:
            await complete(endpoint, endpoint.body(prompts.next(), max_tokens=2, temperature=0, **dialect))
        except BenchError as error:
            refusal = error
        else:
            return dialect
    assert refusal is not None
    raise refusal


async def run_load(
    endpoint: Endpoint,
    prompts: Prompts,
    *,
    streams: int,
    rounds: int,
    fields: dict[str, Any],
    image_streams: int = 0,
) -> Figures:
    """Keep `streams` requests open until each stream has sent `rounds` of them.

    Args:
        image_streams: concurrent requests with a new image each, which no figure counts.

    Raises:
        BenchError: any request failed.
    """

    async def one_stream() -> list[Record]:
        return [await complete(endpoint, endpoint.body(prompts.next(), **fields)) for _ in range(rounds)]

    async def one_image() -> None:
        body = endpoint.body_with_image(prompts.next(), new_images.next(), **fields)
        await complete(endpoint, body)

    async def one_image_stream() -> None:
        while True:
            await one_image()

    new_images = Images()
    # As many as the load has, so that the server has seen images before the load begins.
    await asyncio.gather(*(one_image() for _ in range(image_streams)))
    images = [asyncio.create_task(one_image_stream()) for _ in range(image_streams)]
    started, cpu_started = time.perf_counter(), time.process_time()
    records = list(itertools.chain(*await asyncio.gather(*(one_stream() for _ in range(streams)))))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    for task in images:
        task.cancel()
    for ended in await asyncio.gather(*images, return_exceptions=True):
        if isinstance(ended, BenchError):
            raise ended
    num_tokens = sum(record.num_tokens for record in records)
    return Figures(
        streams=streams,
        num_requests=len(records),
        num_tokens=num_tokens,
        prompt_tokens=statistics.fmean(record.num_prompt_tokens or 0 for record in records),
        tokens_per_second=num_tokens / wall,
        ttft_seconds=Spread.of(record.arrivals[0].seconds - record.sent_seconds for record in records),
        itl_seconds=Spread.of(gap for record in records for gap in token_gaps(record)),
        chunk_gap_seconds=Spread.of(gap for record in records for gap in chunk_gaps(record)),
        e2e_seconds=Spread.of(record.done_seconds - record.sent_seconds for record in records),
        client_cpu_fraction=cpu / wall,
    )


def chunk_gaps(record: Record) -> list[float]:
    """Return the time between consecutive events of a stream."""
    return [b.seconds - a.seconds for a, b in itertools.pairwise(record.arrivals)]


def token_gaps(record: Record) -> list[float]:
    """Return one gap per token after the first event.

    If the server does not report tokens per event, they are assumed to be spread evenly.
    """
    even = max(1, round(record.num_tokens / len(record.arrivals)))
    counts = [arrival.num_tokens or even for arrival in record.arrivals[1:]]
    gaps = zip(chunk_gaps(record), counts, strict=True)
    return [gap / count for gap, count in gaps for _ in range(count)]


def median_of(runs: Sequence[Figures]) -> Figures:
    """Return the median of every figure over repeats of one load."""

    def middle(name: str) -> Any:
        values = [getattr(run, name) for run in runs]
        if isinstance(values[0], Spread):
            return Spread(
                statistics.median(value.p50 for value in values),
                statistics.median(value.p99 for value in values),
            )
        # Counts stay integers.
        return (statistics.median_low if isinstance(values[0], int) else statistics.median)(values)

    return Figures(**{field.name: middle(field.name) for field in dataclasses.fields(Figures)})
