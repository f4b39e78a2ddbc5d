"""What `vinfer bench` prints: a table of loads, percentiles as lines, the comparison of two runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vinfer.bench.figures import Figures, Spread
from vinfer.bench.run import Run

TIMES = {"TTFT": "ttft_seconds", "ITL": "itl_seconds", "e2e": "e2e_seconds"}
"""The times that are shown: to the first token, between tokens, and of the whole answer."""
_PLOT_WIDTH = 48


def print_run(run: Run, console: Console | None = None) -> None:
    """Print the table of a run, the percentiles of each time, and what failed."""
    console = console or Console()
    console.print(f"{run.model} at {run.url}", highlight=False, markup=False)
    console.print(_table(run.loads))
    for name, field in TIMES.items():
        for line in plot(name, {load.streams: getattr(load, field) for load in run.loads}):
            console.print(line, highlight=False, markup=False, no_wrap=True, crop=True)
    for message, count in run.errors.items():
        console.print(f"{count} requests failed: {message}", highlight=False, markup=False)


def print_comparison(new: Run, old: Run, console: Console | None = None) -> None:
    """Print how a run differs from an older one, load by load; only loads that both have."""
    console = console or Console()
    console.print(
        f"against {old.model} at {old.url}; a time below 100 % and a rate above it is better",
        highlight=False,
        markup=False,
    )
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for title in ("streams", "tokens/s", *(f"{name} {p}" for name in TIMES for p in ("p50", "p99"))):
        table.add_column(title, justify="right", no_wrap=True)
    for of_new, of_old in in_common(new, old):
        table.add_row(f"{of_new.streams}", *ratios(of_new, of_old).values())
    console.print(table)
    for difference in differences(new, old):
        console.print(difference, highlight=False, markup=False)


def in_common(new: Run, old: Run) -> list[tuple[Figures, Figures]]:
    """Return the loads with as many streams in both runs."""
    before = {load.streams: load for load in old.loads}
    return [(load, before[load.streams]) for load in new.loads if load.streams in before]


def ratios(new: Figures, old: Figures) -> dict[str, str]:
    """Return each figure as a share of the older one, in words; `-` where the older one is 0."""
    pairs = {"tokens_per_second": (new.tokens_per_second, old.tokens_per_second)}
    for field in TIMES.values():
        of_new, of_old = getattr(new, field), getattr(old, field)
        pairs |= {f"{field}_p50": (of_new.p50, of_old.p50), f"{field}_p99": (of_new.p99, of_old.p99)}
    return {name: f"{100 * a / b:.0f} %" if b else "-" for name, (a, b) in pairs.items()}


def differences(new: Run, old: Run) -> list[str]:
    """Describe why two runs may not be comparable."""
    found = []
    for name in ("requests", "prompt_words", "output_tokens", "fields", "is_chat", "seed"):
        a, b = getattr(new.options, name), getattr(old.options, name)
        if a != b:
            found.append(f"not the same load: {name} is {a}, and was {b}")
    if not in_common(new, old):
        found.append("no number of streams is in both runs: measure with the same --streams")
    return found


def _table(loads: Sequence[Figures]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    titles = ("streams", "tokens/s", "errors", *(f"{name} p50" for name in TIMES))
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
        if title.endswith("p50"):
            table.add_column("p99", justify="right", no_wrap=True)
    for load in loads:
        spreads: list[Spread] = [getattr(load, field) for field in TIMES.values()]
        times = [_time(value) for spread in spreads for value in (spread.p50, spread.p99)]
        table.add_row(f"{load.streams}", f"{load.tokens_per_second:.1f}", f"{load.num_errors}", *times)
    return table


def plot(name: str, spreads: dict[int, Spread]) -> Iterator[str]:
    """Yield lines that show the 10th to 99th percentile, with a box from the 25th to the 75th.

    Args:
        spreads: by number of streams.
    """
    top = max((spread.p99 for spread in spreads.values()), default=0)
    yield f"{name}, percentiles 10 to 99, box 25 to 75, | 50; the right edge is {_time(top)}"
    for streams, spread in spreads.items():
        yield f"{streams:>7}  {_line(spread, top)}"


def _line(spread: Spread, top: float) -> str:
    def at(seconds: float) -> int:
        return min(_PLOT_WIDTH - 1, int(seconds / top * _PLOT_WIDTH)) if top else 0

    cells = [" "] * _PLOT_WIDTH
    for start, end, mark in ((spread.p10, spread.p99, "-"), (spread.p25, spread.p75, "=")):
        cells[at(start) : at(end) + 1] = mark * (at(end) - at(start) + 1)
    cells[at(spread.p50)] = "|"
    return "".join(cells).rstrip()


def _time(seconds: float) -> str:
    """Return a time as a person reads it, with three digits or so."""
    milliseconds = seconds * 1000
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.2f} ms"
