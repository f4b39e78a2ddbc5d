"""The load and its figures: so many streams at once, each one request after the other.

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

# Asked for in this order until the server takes one: peers do not know every field of ours.
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
    """What one run of a load came to.

    Attributes:
        tokens_per_second: generated tokens over the wall time of the whole run.
        ttft_seconds: from sending a request to its first token.
        itl_seconds: per token, the gap before its event divided by the tokens in the event.
        chunk_gap_seconds: between two events of one stream.
        e2e_seconds: from sending a request to the end of its stream.
        client_cpu_fraction: of one core, spent by the client during the run.
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
    """An endless row of prompts that share no beginning, so that no prefix cache helps anyone."""

    def __init__(self, num_words: int, seed: int) -> None:
        self._num_words = num_words
        self._random = random.Random(seed)
        self._numbers: Iterator[int] = itertools.count(self._random.randrange(1000, 5000))

    def next(self) -> str:
        words = self._random.choices(WORDS.split(), k=self._num_words)
        return f"{' '.join(words)} {next(self._numbers)}:"


class Images:
    """An endless row of images that differ, so that no cache of features helps anyone."""

    def __init__(self) -> None:
        # Of this process's own: a server may have seen those of an earlier run.
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
    """Interpolate between the two nearest ranks of sorted values; 0 where there are none."""
    if not ordered:
        return 0.0
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


async def negotiate(endpoint: Endpoint, prompts: Prompts) -> dict[str, Any]:
    """Return the fields of `DIALECTS` that this server takes.

    Raises:
        BenchError: it takes none of them; says what it answered to the plainest.
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
    """Keep `streams` requests open until each stream has made `rounds` of them.

    Args:
        image_streams: requests with a new image each, kept open beside them and counted by no figure.

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
    # As many as will come, so that the load begins beside a server that has seen images.
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
    """Return the time between each two events of a stream."""
    return [b.seconds - a.seconds for a, b in itertools.pairwise(record.arrivals)]


def token_gaps(record: Record) -> list[float]:
    """Return one gap per token after the first event.

    Where the server does not count its events' tokens they are taken to be spread evenly.
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
        # Counts stay whole numbers.
        return (statistics.median_low if isinstance(values[0], int) else statistics.median)(values)

    return Figures(**{field.name: middle(field.name) for field in dataclasses.fields(Figures)})
