"""The command line of scripts/public-reports: serves a model, tries each report, writes the page."""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Iterator

from benchmark.process import ROOT, serving, vinfer_command

from public_reports import agents, constrained, requests, tools
from public_reports.page import document
from public_reports.report import Report
from public_reports.server import Server
from vinfer.errors import AnswerError

REPORTS = (*requests.REPORTS, *constrained.REPORTS, *tools.REPORTS, *agents.REPORTS)
OVERRIDES = ("models[0].prompt_logprobs=true", "models[0].embeddings=mean", "models[0].verify=off")
READY_SECONDS = 1800
PAGE = ROOT / "docs" / "reports" / "public-reports.md"


def main(description: str | None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/public-reports",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", help="a running server of configs/smollm2.yaml; writes no page")
    url = parser.parse_args().url
    try:
        with contextlib.nullcontext(url) if url else _served() as address:
            tried = [(report, did) for report in REPORTS if (did := _try(report, Server(address)))]
    except AnswerError as error:
        sys.stderr.write(f"public-reports: error: {error}\n")
        return 1
    if len(tried) == len(REPORTS) and not url:
        PAGE.write_text(document(tried))
    print(f"{len(tried)} of {len(REPORTS)} as expected")
    return 0 if len(tried) == len(REPORTS) else 1


@contextlib.contextmanager
def _served() -> Iterator[str]:
    command = vinfer_command(ROOT / "configs" / "smollm2.yaml", None)
    for override in OVERRIDES:
        command += ["--set", override]
    with serving(command, ready_path="/readiness", timeout_seconds=READY_SECONDS) as (url, _):
        yield url


def _try(report: Report, server: Server) -> str | None:
    """Return what vinfer did; None if that is not what is right."""
    try:
        return report.check(server)
    except Exception:  # noqa: BLE001 - any exception of a check is its failure
        sys.stderr.write(f"{report.place}: {report.sent}\n")
        traceback.print_exc()
        return None
