"""The command line of scripts/fuzz: serve, fuzz, look at the server again, write the page."""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmark.client import BenchError
from benchmark.process import ROOT

from fuzzing.page import failures, page
from fuzzing.tally import tally
from fuzzing.tiny import complaints_about_health, fetch_json, tiny_server

PAGE = ROOT / "docs" / "fuzzing.md"
CASES = 10_000


def main() -> int:
    """Run the command line; return the exit code."""
    arguments = _parse()
    with tempfile.TemporaryDirectory(prefix="vinfer-fuzz-") as scratch:
        try:
            return _run(arguments, Path(scratch))
        except BenchError as error:
            sys.stderr.write(f"fuzz: error: {error}\n")
            return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz a tiny server.")
    parser.add_argument("--cases", type=int, default=CASES, help="at least so many (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--log", type=Path, help="keep schemathesis's event log here")
    parser.add_argument("--schemathesis", required=True, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(arguments: argparse.Namespace, scratch: Path) -> int:
    log = arguments.log or scratch / "events.ndjson"
    with tiny_server(scratch) as url:
        started = time.monotonic()
        _fuzz(arguments, url, log)
        minutes = (time.monotonic() - started) / 60
        health = complaints_about_health(url)
    result = tally(log)
    text = page(result, version=_version(arguments.schemathesis), seed=arguments.seed, minutes=minutes)
    print(text)
    found = failures(result, health, min_cases=arguments.cases)
    for failure in found:
        sys.stderr.write(f"fuzz: {failure}\n")
    if arguments.cases >= CASES and not found:
        PAGE.write_text(text)
    return 1 if found else 0


def _fuzz(arguments: argparse.Namespace, url: str, log: Path) -> None:
    """Run schemathesis; its own verdict is not asked for, since every complaint is read from the log."""
    command = [arguments.schemathesis, "run", f"{url}/openapi.json", "--phases", "fuzzing"]
    command += ["--max-examples", str(_cases_per_route(fetch_json(f"{url}/openapi.json"), arguments.cases))]
    command += ["--seed", str(arguments.seed), "--workers", str(min(os.cpu_count() or 1, 8))]
    # Every case counts, also those after a failure; neither shrinking nor a database, which take most of the
    # time and send cases again.
    command += ["--continue-on-failure", "--no-shrink", "--generation-database", "none"]
    command += ["--report", "ndjson", "--report-ndjson-path", str(log), "--output-sanitize", "false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not log.exists():
        raise BenchError(
            f"schemathesis ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    errors = re.search(r"^=+ ERRORS =+$.*?(?=^=+ )", done.stdout, re.MULTILINE | re.DOTALL)
    if errors:
        raise BenchError(f"schemathesis could not make cases of a route:\n{errors[0]}")


def _cases_per_route(document: dict[str, Any], num_cases: int) -> int:
    """Share the cases among the routes that take something; the others have one case each."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    num_varied = sum("requestBody" in operation or "parameters" in operation for operation in operations)
    return math.ceil((num_cases - (len(operations) - num_varied)) / num_varied)


def _version(schemathesis: str) -> str:
    output = subprocess.run([schemathesis, "--version"], capture_output=True, text=True, check=True).stdout
    return output.split()[-1]


if __name__ == "__main__":
    sys.exit(main())
