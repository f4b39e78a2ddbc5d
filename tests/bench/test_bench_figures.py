"""Figures worked out by hand, and what is printed of them."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from vinfer.bench.client import Arrival, Record
from vinfer.bench.figures import Figures, Spread, median_of, percentile, token_gaps
from vinfer.bench.load import Load
from vinfer.bench.run import BenchOptions, Run
from vinfer.bench.tables import plot, print_comparison, print_run


def record(*arrivals: tuple[float, int], done: float, num_tokens: int) -> Record:
    return Record(1.0, done, tuple(Arrival(*each) for each in arrivals), 10, num_tokens, None, "")


# The first token after 1 s; then two tokens in 1 s and one in 3 s.
RECORD = record((2.0, 1), (3.0, 2), (6.0, 1), done=7.0, num_tokens=4)


def figures(**changes: Any) -> Figures:
    load = Load(streams=2, records=(RECORD,), failures=("refused",), wall_seconds=8.0, cpu_seconds=2.0)
    return dataclasses.replace(Figures.of(load), **changes)


def run(*loads: Figures, **options: Any) -> Run:
    return Run(url="http://s", model="m", options=BenchOptions(**options), loads=loads, errors={"refused": 1})


def test_the_figures_of_a_load() -> None:
    of = figures()
    assert (of.num_requests, of.num_errors, of.num_tokens, of.prompt_tokens) == (1, 1, 4, 10)
    assert (of.tokens_per_second, of.client_cpu_fraction) == (0.5, 0.25)
    assert (of.ttft_seconds.p50, of.e2e_seconds.p50) == (1.0, 6.0)
    assert token_gaps(RECORD) == [0.5, 0.5, 3.0]
    assert (of.itl_seconds.p50, of.chunk_gap_seconds.p50) == (0.5, 2.0)


def test_tokens_per_event_are_even_if_the_server_does_not_count() -> None:
    assert token_gaps(record((2.0, 0), (4.0, 0), done=5.0, num_tokens=4)) == [1.0, 1.0]


def test_a_load_without_an_answer() -> None:
    of = Figures.of(Load(streams=1, records=(), failures=("a", "b"), wall_seconds=1.0, cpu_seconds=0.0))
    assert (of.num_requests, of.num_errors, of.tokens_per_second, of.ttft_seconds.p99) == (0, 2, 0.0, 0.0)


def test_percentiles_lie_between_ranks() -> None:
    assert [percentile([0.0, 10.0, 20.0], part) for part in (0, 0.25, 0.5, 0.99, 1)] == pytest.approx(
        [0, 5, 10, 19.8, 20]
    )


def test_the_median_of_runs_is_taken_of_every_figure() -> None:
    spreads = [Spread(*[value] * 6) for value in (1.0, 9.0, 2.0)]
    runs = [figures(num_tokens=n, ttft_seconds=spread) for n, spread in zip((1, 2, 9), spreads, strict=True)]
    middle = median_of(runs)
    assert middle.num_tokens == 2
    assert middle.ttft_seconds == Spread(*[2.0] * 6)


def test_a_plot_has_its_marks_in_their_places() -> None:
    title, wide, narrow = plot("TTFT", {1: Spread(0.0, 12.0, 24.0, 36.0, 40.0, 48.0), 16: Spread(*[6.0] * 6)})
    assert title.endswith("the right edge is 48.00 s")
    assert wide == "      1  " + "-" * 12 + "=" * 12 + "|" + "=" * 12 + "-" * 11
    assert narrow == "     16  " + " " * 6 + "|"


def printed(function: Any, *arguments: Any, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    function(*arguments, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_fits_a_terminal_of_80_columns() -> None:
    text = printed(print_run, run(figures()))
    assert "m at http://s" in text
    row = next(line for line in text.splitlines() if line.split()[:1] == ["2"])
    assert row.split() == [
        *("2", "0.5", "1"),
        *("1.00", "s") * 2,
        *("500", "ms", "2.95", "s"),
        *("6.00", "s") * 2,
    ]
    assert "1 requests failed: refused" in text
    assert max(map(len, text.splitlines())) <= 80


def test_runs_are_compared_load_by_load() -> None:
    new = run(figures(tokens_per_second=1.0), figures(streams=9))
    text = printed(print_comparison, new, run(figures(), output_tokens=9), width=120)
    rows = [line.split() for line in text.splitlines() if line.split()[:1] == ["2"]]
    assert rows == [["2", "200", "%", *["100", "%"] * 6]]
    assert "not the same load: output_tokens is 64, and was 9" in text
    assert "no number of streams is in both" in printed(
        print_comparison, run(figures(streams=9)), run(figures(streams=3))
    )
