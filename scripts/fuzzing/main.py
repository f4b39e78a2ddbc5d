"""The command line of scripts/fuzz: serve, fuzz, check the server again, write the page."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmark.process import ROOT

from fuzzing.cases import fuzz
from fuzzing.page import failures, page
from fuzzing.tally import tally
from fuzzing.tiny import complaints_about_health, tiny_server
from vinfer.errors import AnswerError

PAGE = ROOT / "docs" / "reports" / "fuzzing.md"
CASES = 10_000


def main() -> int:
    """Run the command line; return the exit code."""
    arguments = _parse()
    with tempfile.TemporaryDirectory(prefix="vinfer-fuzz-") as scratch:
        try:
            return _run(arguments, Path(scratch))
        except AnswerError as error:
            sys.stderr.write(f"fuzz: error: {error}\n")
            return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz a tiny server.")
    parser.add_argument("--cases", type=int, default=CASES, help="minimum number of cases (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--logs", type=Path, help="an empty directory for schemathesis's event logs")
    parser.add_argument("--schemathesis", required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(arguments: argparse.Namespace, scratch: Path) -> int:
    logs = arguments.logs or scratch
    with tiny_server(scratch) as url:
        started = time.monotonic()
        fuzz(url, arguments.schemathesis, num_cases=arguments.cases, seed=arguments.seed, logs=logs)
        minutes = (time.monotonic() - started) / 60
        health = complaints_about_health(url)
    result = tally(sorted(logs.glob("*.ndjson")))
    text = page(result, version=_version(arguments.schemathesis), seed=arguments.seed, minutes=minutes)
    print(text)
    found = failures(result, health, min_cases=arguments.cases)
    for failure in found:
        sys.stderr.write(f"fuzz: {failure}\n")
    if arguments.cases >= CASES and not found:
        PAGE.write_text(text)
    return 1 if found else 0


def _version(schemathesis: str) -> str:
    output = subprocess.run([schemathesis, "--version"], capture_output=True, text=True, check=True).stdout
    return output.split()[-1]


if __name__ == "__main__":
    sys.exit(main())
