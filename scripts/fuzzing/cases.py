"""Runs schemathesis against a server: one process per route, as many at once as there are cores.

Knows only its command line; the results of the cases are in the event logs that it writes.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzzing.document import for_schemathesis
from fuzzing.tally import tally
from fuzzing.tiny import fetch_json
from vinfer.errors import AnswerError

# Hypothesis gives up if it draws too many unusable values; another seed continues.
MAX_ROUNDS = 5
# A case may request thousands of tokens; anything slower than this counts as a hang.
REQUEST_SECONDS = 120


def fuzz(url: str, schemathesis: str, *, num_cases: int, seed: int, logs: Path) -> None:
    """Send at least `num_cases` cases, the same number to each route that takes parameters or a body.

    A route without either gets one case.

    Raises:
        AnswerError: schemathesis cannot generate cases for a route.
    """
    document = fetch_json(f"{url}/openapi.json")
    written = logs / "openapi.json"
    written.write_text(json.dumps(for_schemathesis(document)))
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    varied = ["requestBody" in operation or "parameters" in operation for operation in operations]
    share = math.ceil((num_cases - varied.count(False)) / varied.count(True))

    def fuzz_route(operation_id: str, num_wanted: int) -> None:
        route_logs: list[Path] = []
        num_left = num_wanted
        while num_left > 0 and len(route_logs) < MAX_ROUNDS:
            log = logs / f"{operation_id}-{len(route_logs)}.ndjson"
            _run(url, written, schemathesis, operation_id, num_left, seed + len(route_logs), log)
            route_logs.append(log)
            num_left = num_wanted - tally(route_logs).num_cases

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        runs = [
            pool.submit(fuzz_route, operation["operationId"], share if is_varied else 1)
            for operation, is_varied in zip(operations, varied, strict=True)
        ]
        for run in runs:
            run.result()


def _run(
    url: str, document: Path, schemathesis: str, operation_id: str, num_cases: int, seed: int, log: Path
) -> None:
    """Run it once and ignore its exit code, because every complaint is read from the log."""
    command = [schemathesis, "run", str(document), "--url", url, "--phases", "fuzzing"]
    command += ["--include-operation-id", operation_id, "--max-examples", str(num_cases), "--seed", str(seed)]
    # Every case counts, also those after a failure. Shrinking and the example database would repeat cases and
    # take most of the time.
    command += ["--continue-on-failure", "--no-shrink", "--generation-database", "none", "--workers", "1"]
    command += ["--request-timeout", str(REQUEST_SECONDS)]
    command += ["--report", "ndjson", "--report-ndjson-path", str(log), "--output-sanitize", "false"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = re.search(r"^=+ ERRORS =+$.*?(?=^=+ )", done.stdout, re.MULTILINE | re.DOTALL)
    if done.returncode not in (0, 1) or errors or not log.exists():
        what = errors[0] if errors else done.stdout[-2000:] + done.stderr[-2000:]
        raise AnswerError(f"schemathesis failed on {operation_id}:\n{what}")
