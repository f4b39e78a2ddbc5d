"""The figures that tests show: runs them, and reports how many passed. Also promtool."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

from benchmark.process import ROOT

from reliability_runs.figure import Figure, Run, judged, skipped
from reliability_runs.server import tiny_server

TESTED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "11",
        "a cache of machine code that is damaged, read-only or of others: a warning, and it serves",
        ("tests/engine/loading",),
    ),
    (
        "17",
        "random sequences of submit, cancel, finish and preemption against a model of the slots",
        ("tests/engine/test_scheduler_sequences.py", "tests/engine/kv_cache/test_preemption.py"),
    ),
    (
        "19",
        "bodies that are empty, not JSON, nested, doubled, compressed, endless or lie about their length",
        (
            "tests/server/http/test_request_body.py",
            "tests/server/http/test_http_limits.py",
            "tests/server/http/test_large_bodies.py",
        ),
    ),
    ("20", "YAML with tags, anchors, doubled keys, tabs, 10 MB", ("tests/config/test_config_yaml.py",)),
    (
        "21",
        "API keys on every route, whatever the path, the method or the host",
        ("tests/server/http/test_auth.py",),
    ),
    (
        "22",
        "no text, key, path or traceback in answers and logs",
        ("tests/server/http/test_failures.py", "tests/server/http/test_serve.py"),
    ),
)
"""By figure: what must hold, and the tests that show it."""

NOT_MEASURED = (
    (
        "18",
        "atheris, 1,000,000 executions of each parser",
        "atheris is not part of this project; the parsers have tests with Hypothesis",
    ),
    (
        "24",
        "pip-audit, bandit, deptry, cyclonedx",
        "they need data of the network; the rules of bandit (ruff S) are part of scripts/check",
    ),
)


def tests(run: Run) -> list[Figure]:
    """Run the tests of figures 11, 17 and 19 to 22."""
    return [_tested(*each) for each in TESTED] + [skipped(*each) for each in NOT_MEASURED] + [_fuzzed()]


def _tested(number: str, wanted: str, files: tuple[str, ...]) -> Figure:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    named = ", ".join(f"`{file}`" for file in files)
    return judged(number, wanted, f"{named}: {re.sub(r' in .*', '', last)}", done.returncode == 0)


def _fuzzed() -> Figure:
    text = (ROOT / "docs" / "reports" / "fuzzing.md").read_text()
    found = re.search(r"Last run: (\S+),.*?\n?.*?([\d,]+) cases;.*?\n?(\d+) a 5xx", text, re.DOTALL)
    wanted = "schemathesis, 10,000 cases: no 5xx, every body matches its schema"
    if found is None:
        return skipped("16", wanted, "docs/reports/fuzzing.md has no result: run scripts/fuzz")
    date, cases, num_errors = found.groups()
    return judged(
        "16", wanted, f"{cases} cases, {num_errors} a 5xx ([fuzzing](fuzzing.md), {date})", num_errors == "0"
    )


def metrics(run: Run) -> Figure:
    """Measure figure 23."""
    wanted = "promtool check metrics; labels are bounded (an unknown path is `other`)"
    tool = shutil.which("promtool")
    if tool is None:
        return skipped("23", wanted, "promtool is not in PATH (Debian: prometheus)")
    with tiny_server(run.folder / "metrics") as server:
        for i in range(50):
            server.status(f"/v1/unknown-{i}")
            server.complete(model=f"m{i}")
        server.complete()
        text = server.http.get("/metrics").text
    done = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    others = [line for line in lines if "metric names should not contain ':'" not in line]
    names = set(re.findall(r'(?:route|model_name)="([^"]*)"', text))
    return judged(
        "23",
        wanted,
        f"promtool: {len(lines) - len(others)} lines about the colon, {len(others)} others; "
        f"{len(names)} names of routes and models",
        not others and not any("unknown" in name or re.fullmatch(r"m\d+", name) for name in names),
    )
