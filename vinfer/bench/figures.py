"""The figures of a load: rates, and percentiles of times. Pure arithmetic over its records."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from vinfer.bench.client import Record
from vinfer.bench.load import Load


@dataclasses.dataclass(frozen=True)
class Spread:
    """Percentiles of a time, in seconds; 0 if nothing was measured."""

    p10: float
    p25: float
    p50: float
    p75: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        ordered = sorted(values)
        return cls(*(percentile(ordered, int(field.name[1:]) / 100) for field in dataclasses.fields(cls)))


@dataclasses.dataclass(frozen=True)
class Figures:
    """The results of one run of a load.

    Attributes:
        num_requests: requests that were answered.
        num_errors: requests that were not; no other figure counts them.
        prompt_tokens: mean length of the prompts; 0 if the server does not say.
        tokens_per_second: generated tokens over the wall time of the whole run.
        ttft_seconds: from sending a request to its first token.
        itl_seconds: per token, the gap before its event divided by the tokens in the event.
        chunk_gap_seconds: time between two events of one stream.
        e2e_seconds: from sending a request to the end of its stream.
        client_cpu_fraction: share of one core used by the client during the run.
    """

    streams: int
    num_requests: int
    num_errors: int
    num_tokens: int
    prompt_tokens: float
    tokens_per_second: float
    ttft_seconds: Spread
    itl_seconds: Spread
    chunk_gap_seconds: Spread
    e2e_seconds: Spread
    client_cpu_fraction: float

    @classmethod
    def of(cls, load: Load) -> Figures:
        """Compute the figures of a load."""
        records = load.records
        num_tokens = sum(record.num_tokens for record in records)
        return cls(
            streams=load.streams,
            num_requests=len(records),
            num_errors=len(load.failures),
            num_tokens=num_tokens,
            prompt_tokens=statistics.fmean([record.num_prompt_tokens or 0 for record in records] or [0]),
            tokens_per_second=num_tokens / load.wall_seconds,
            ttft_seconds=Spread.of(record.arrivals[0].seconds - record.sent_seconds for record in records),
            itl_seconds=Spread.of(gap for record in records for gap in token_gaps(record)),
            chunk_gap_seconds=Spread.of(gap for record in records for gap in chunk_gaps(record)),
            e2e_seconds=Spread.of(record.done_seconds - record.sent_seconds for record in records),
            client_cpu_fraction=load.cpu_seconds / load.wall_seconds,
        )


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Interpolate between the two nearest ranks of sorted values; return 0 if there are none."""
    if not ordered:
        return 0.0
    place = fraction * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


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

    def middle(values: Sequence[Any]) -> Any:
        if isinstance(values[0], Spread):
            spreads = zip(*map(dataclasses.astuple, values), strict=True)
            return Spread(*map(statistics.median, spreads))
        # Counts stay integers.
        return (statistics.median_low if isinstance(values[0], int) else statistics.median)(values)

    names = [field.name for field in dataclasses.fields(Figures)]
    return Figures(**{name: middle([getattr(run, name) for run in runs]) for name in names})
