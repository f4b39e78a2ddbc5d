"""docs/reports/reliability.md from figures."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import platform
import re
from collections.abc import Sequence

from reliability_runs.figure import Figure

HEAD = """\
# Load, faults and hostile input

Written by `scripts/reliability`. It serves a tiny random Llama (3 layers, 128 wide, 16 slots, 512 tokens,
float32) as processes of their own, and measures them from outside. All numbers are of this machine; the model
is small, so they tell about the server rather than about models.

Last run: {date}, {cores} cores, {system}, Python {python}; load average {load} at the end.
{holds} of {measured} figures hold; {missing} were not measured.

## Figures

| figure | must hold | measured | verdict |
|---|---|---|---|
{figures}

## Before and after

What broke in an earlier version, and the figure or test that shows it now:

| before | now |
|---|---|
{repairs}
"""
# Each: what was seen before, and what shows it now: a test, or the figure of a name.
REPAIRS: tuple[tuple[str, str], ...] = (
    (
        "eight bodies of 3.4 MB with 100,000 messages stopped the event loop for 54 s",
        "figure `hostile bodies`; `tests/server/http/test_large_bodies.py`",
    ),
    (
        "24 prompts of 4 MB to a model of 256 tokens: everyone waited 62 s, memory 1.5 to 3.9 GB",
        "figures `hostile bodies` and `memory`",
    ),
    (
        "an engine that hung or met SystemExit: readiness stayed 200, the drain exited with 0",
        "figures `10`; `tests/e2e/test_failpoints.py`, `tests/server/http/test_watchdog.py`",
    ),
    ("SIGHUP ended the process without a drain", "`tests/server/http/test_reload.py`"),
    (
        "60 long requests of one client: another's first token after 122 s, 0.3 s alone",
        "figure `fairness`; `tests/engine/test_fair_shares.py`",
    ),
    (
        "an engine's death wrote 55,073 lines for 80 requests",
        "figure `10`; `tests/engine/test_engine_deaths.py`",
    ),
    ("20 kB of zeros in a file of weights were served", "figure `12, starts`; `tests/launch/test_loader.py`"),
    ("401 and the 503 of a drain were not counted", "`tests/server/routes/test_metrics_route.py`"),
    ("`Retry-After: 1` while the queue took 122 s", "figure `3`; `tests/engine/test_fair_shares.py`"),
    ("rolling restart: 3 of 1,749 requests got 503", "figure `rolling`"),
    (
        "cache of mode 777, no or two Hosts, a `user` of two million numbers, a dead engine that was `ready`",
        "figure `hostile bodies`; `tests/engine/loading`, `tests/server/http/test_http_limits.py`",
    ),
)


def page(figures: Sequence[Figure]) -> str:
    """Return the page, with the figures in the order of their numbers."""
    ordered = sorted(figures, key=_order)
    measured = [figure for figure in figures if figure.verdict != "not measured"]
    return HEAD.format(
        date=dt.datetime.now(dt.UTC).date(),
        cores=os.cpu_count(),
        system=platform.system(),
        python=platform.python_version(),
        load=f"{os.getloadavg()[0]:.1f}",
        holds=sum(figure.verdict == "holds" for figure in figures),
        measured=len(measured),
        missing=len(figures) - len(measured),
        figures="\n".join(f"| {' | '.join(map(_cell, dataclasses.astuple(figure)))} |" for figure in ordered),
        repairs="\n".join(f"| {before} | {now} |" for before, now in REPAIRS),
    )


def _order(figure: Figure) -> tuple[int, str]:
    found = re.match(r"\d+", figure.number)
    return (int(found[0]) if found else 1000, figure.number)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
