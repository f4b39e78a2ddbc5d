"""The command line of scripts/reliability: measure, print, and write the page after a full run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmark.process import ROOT

from reliability_runs import faults, hostile, load, rolling, soak, tested
from reliability_runs.figure import Figure, Run
from reliability_runs.page import page

PAGE = ROOT / "docs" / "reports" / "reliability.md"
FULL = {"soak_seconds": 600.0, "soak_requests": 16_000, "num_disconnects": 10_000}
QUICK = {"soak_seconds": 30.0, "soak_requests": 500, "num_disconnects": 300}
MEASUREMENTS: Mapping[str, Callable[[Run], Figure | list[Figure]]] = {
    "streams": load.streams,
    "burst": load.burst,
    "long-prompt": load.long_prompt,
    "fairness": load.fair_shares,
    "hostile": hostile.hostile_bodies,
    "slow-readers": hostile.slow_readers,
    "slow-senders": hostile.slow_senders,
    "disconnects": soak.disconnects,
    "signals": faults.signals,
    "deaths": faults.deaths,
    "descriptors": faults.descriptors,
    "starts": faults.failed_starts,
    "pause": faults.pause,
    "rolling": rolling.rolling_restart,
    "metrics": tested.metrics,
    "tests": tested.tests,
    "soak": soak.soaks,
}


def main() -> int:
    """Run the command line; return 1 if a figure does not hold."""
    arguments = _parse()
    # Thousands of connections, here and in the servers.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    sizes = QUICK if arguments.quick else FULL
    kept = _kept(arguments.keep)
    with tempfile.TemporaryDirectory(prefix="vinfer-rel-") as folder:
        run = Run(Path(folder), **{**sizes, **_given(arguments)})  # type: ignore[arg-type]
        for name in arguments.only or MEASUREMENTS:
            kept[name] = _measured(name, run)
            if arguments.keep is not None:
                arguments.keep.write_text(json.dumps(kept, default=dataclasses.asdict, indent=1))
    figures = [figure for name in MEASUREMENTS for figure in kept.get(name, ())]
    text = page(figures)
    if kept.keys() == MEASUREMENTS.keys() and not arguments.quick:
        PAGE.write_text(text)
    print(text)
    return int(any(figure.verdict == "does not hold" for figure in figures))


def _kept(path: Path | None) -> dict[str, list[Figure]]:
    """Return the figures of earlier runs by measurement."""
    if path is None or not path.exists():
        return {}
    return {
        name: [Figure(**figure) for figure in found] for name, found in json.loads(path.read_text()).items()
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/reliability", description="Measure a tiny server.")
    parser.add_argument("--quick", action="store_true", help="short soaks and few disconnects")
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help=f"some of {', '.join(MEASUREMENTS)}",
    )
    parser.add_argument("--soak-seconds", type=float, help=f"({FULL['soak_seconds']:g})")
    parser.add_argument("--soak-requests", type=int, help=f"({FULL['soak_requests']})")
    parser.add_argument("--disconnects", type=int, help=f"({FULL['num_disconnects']})")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="add the figures to those that earlier runs kept here"
    )
    arguments = parser.parse_args()
    unknown = set(arguments.only or ()) - MEASUREMENTS.keys()
    if unknown:
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    return arguments


def _given(arguments: argparse.Namespace) -> dict[str, float]:
    given = {
        "soak_seconds": arguments.soak_seconds,
        "soak_requests": arguments.soak_requests,
        "num_disconnects": arguments.disconnects,
    }
    return {name: value for name, value in given.items() if value is not None}


def _measured(name: str, run: Run) -> list[Figure]:
    """Return the figures of one measurement; one that breaks does not hold, and the others go on."""
    began = time.monotonic()
    try:
        found = MEASUREMENTS[name](run)
    except Exception as error:  # noqa: BLE001
        traceback.print_exc()
        found = Figure(
            name, "the measurement comes to its end", f"{type(error).__name__}: {error}", "does not hold"
        )
    figures = found if isinstance(found, list) else [found]
    for figure in figures:
        sys.stderr.write(f"{figure.number}: {figure.verdict}: {figure.measured}\n")
    sys.stderr.write(f"-- {name}: {time.monotonic() - began:.0f} s\n")
    return figures


if __name__ == "__main__":
    sys.exit(main())
