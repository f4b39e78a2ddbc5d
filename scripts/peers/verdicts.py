"""What vinfer must reach beside the peers, and whether a document of figures shows it. Pure."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from peers.turns import ratio

Document = Mapping[str, Any]
LLAMA, VLLM = "llama.cpp-F32", "vllm"
_AT_LEAST, _AT_MOST = ("at least", operator.ge), ("at most", operator.le)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One line of what must be shown.

    Attributes:
        measured: None if the run does not have it.
        why: why it was not measured; empty if it was.
    """

    line: str
    demand: str
    measured: float | None
    holds: bool
    why: str = ""

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return f"not measured: {self.why}"
        return "holds" if self.holds else "**missed**"


def verdicts(document: Document) -> list[Verdict]:
    """Judge every line of a document."""
    return [*_throughput(document), *_starts(document), *_latencies(document), *_others(document)]


def _judge(
    line: str,
    demand: tuple[str, Callable[[float, float], bool]],
    limit: float,
    measured: float | None,
    why: str,
) -> Verdict:
    words, holds = demand
    return Verdict(
        line,
        f"{words} {limit:g}",
        measured,
        measured is not None and holds(measured, limit),
        "" if measured is not None else why,
    )


def _ratio(
    document: Document, part: str, key: str | None, peer: str, figure: str
) -> tuple[float | None, str]:
    """Return vinfer's figure as a share of a peer's, and why there is none."""
    found = document["parts"].get(part, {})
    sides = found.get(key, {}) if key else found
    measured = ratio(sides.get("vinfer"), sides.get(peer), figure)
    return measured, "" if measured is not None else _why(document, sides, part, peer)


def _why(document: Document, sides: Mapping[str, Any], part: str, peer: str) -> str:
    for name in ("vinfer", peer):
        if reason := sides.get(name, {}).get("failure"):
            return f"{name}: {reason}"
        if reason := document["absent"].get(name) or document["absent"].get(name.split("-")[0]):
            return f"{name}: {reason}"
    return f"this run has no part `{part}` with {peer}"


def _throughput(document: Document) -> Iterator[Verdict]:
    demands = [
        *((LLAMA, "llama.cpp F32", streams, limit) for streams, limit in _OF_LLAMA.items()),
        *((VLLM, "vLLM", streams, 1.2) for streams in (1, 4, 8, 16, 32)),
    ]
    for peer, title, streams, limit in demands:
        found = _ratio(document, "fixed", f"{streams}", peer, "tokens_per_second")
        yield _judge(f"tokens/s / {title}, {streams} streams", _AT_LEAST, limit, *found)


_OF_LLAMA = {1: 0.85, 4: 0.9, 8: 1.0, 16: 1.0, 32: 1.0}


def _starts(document: Document) -> Iterator[Verdict]:
    starts = document["parts"].get("start", {})
    measured = ratio(starts.get("quickstart"), starts.get("before"), "ready_seconds")
    yield _judge("start from the bundle / before", _AT_MOST, 0.55, measured, "give `--before`")
    yield Verdict(
        "quickstart from a fresh clone / before",
        "at most 0.7",
        None,
        False,
        "by hand: time `scripts/quickstart` in two fresh clones",
    )


def _latencies(document: Document) -> Iterator[Verdict]:
    for line, part, key, figure, limit in (
        ("time per token p50 / llama.cpp F32, 8 streams", "fixed", "8", "tpot_p50", 1.0),
        ("TTFT p50 / llama.cpp F32, 16 streams", "fixed", "16", "ttft_p50", 1.0),
        ("TTFT of a lone prompt of 67 tokens / llama.cpp F32", "lone", "67", "ttft_p50", 1.1),
    ):
        yield _judge(line, _AT_MOST, limit, *_ratio(document, part, key, LLAMA, figure))
    beside = document["parts"].get("beside", {}).get("vinfer", {})
    of_vinfer = beside.get("median", {})
    why = beside.get("failure") or "this run has no part `beside`"
    yield _judge(
        "longest gap of 8 streams beside a prompt of 2,000 tokens / undisturbed",
        _AT_MOST,
        3.0,
        of_vinfer.get("gap_ratio"),
        why,
    )
    yield _judge("TTFT of that prompt / alone", _AT_MOST, 1.3, of_vinfer.get("ttft_ratio"), why)


def _others(document: Document) -> Iterator[Verdict]:
    lookup = document["parts"].get("lookup", {})
    for task, limit in _LOOKUP.items():
        sides = lookup.get(task, {})
        measured = ratio(sides.get("with"), sides.get("without"), "tokens_per_second")
        yield _judge(
            f"prompt lookup: tokens/s with / without, {task}",
            _AT_LEAST,
            limit,
            measured,
            "this run has no part `lookup`",
        )
    equal = [
        side.get("median", {}).get("is_equal", 0.0) for sides in lookup.values() for side in sides.values()
    ]
    yield _judge(
        "prompt lookup: share of equal answers",
        _AT_LEAST,
        1.0,
        min(equal) if equal else None,
        "this run has no part `lookup`",
    )
    for streams, sides in document["parts"].get("ceiling", {"1, 16 and 64": {}}).items():
        measured = ratio(sides.get("vinfer"), sides.get("before"), "tokens_per_second")
        yield _judge(
            f"host's ceiling / before, {streams} streams", _AT_LEAST, 0.95, measured, "give `--before`"
        )
    for peer, title in ((LLAMA, "llama.cpp F32"), (VLLM, "vLLM")):
        found = _ratio(document, "shared", None, peer, "wall_seconds")
        yield _judge(f"shared prefix: wall time / {title}", _AT_MOST, 1.0, *found)
    yield _judge(
        "peak memory / (weights + KV cache)",
        _AT_MOST,
        1.6,
        memory_ratio(document, "vinfer"),
        "this run has no part `memory`",
    )


_LOOKUP = {
    "summary with quotes": 1.3,
    "code edit": 1.3,
    "JSON with a schema": 1.3,
    "a text that copies nothing": 0.95,
}


def memory_ratio(document: Document, name: str) -> float | None:
    """Return the most memory that a server had as a share of its weights and its KV cache."""
    planned = document["servers"].get(name, {}).get("planned_bytes")
    peak = peak_bytes(document, name)
    return peak / planned if peak and planned else None


def peak_bytes(document: Document, name: str) -> float | None:
    """Return the most memory that a server had, in a start or under load."""
    peaks = [
        float(turn[figure])
        for part, figure in (("start", "memory_bytes"), ("memory", "peak_bytes"))
        for turn in document["parts"].get(part, {}).get(name, {}).get("turns", ())
        if figure in turn
    ]
    return max(peaks) if peaks else None
