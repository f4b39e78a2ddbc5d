"""Formats what was tried as docs/reports/public-reports.md."""

from __future__ import annotations

from collections.abc import Sequence

from public_reports.report import Report

LONGEST = 200

HEAD = """\
# Public reports about other servers

Written by `scripts/public-reports`; do not edit. What people reported about other servers, sent to
`vinfer serve` with SmolLM2-135M-Instruct ([configs/smollm2.yaml](../../configs/smollm2.yaml), with
`prompt_logprobs` and `embeddings`). A place is a repository on GitHub and the number of the issue.

| outcome | meaning | reports |
|---|---|---|
"""
MEANINGS = {
    "right": "vinfer did it right before",
    "mended": "vinfer was wrong; now it is right, and a test holds the whole kind",
    "left": "vinfer refuses it, for the reason given",
}


def document(tried: Sequence[tuple[Report, str]]) -> str:
    """Return the page; each report comes with what vinfer did."""
    reports = [report for report, _ in tried]
    counts = [
        f"| {outcome} | {meaning} | {sum(report.outcome == outcome for report in reports)} |"
        for outcome, meaning in MEANINGS.items()
    ]
    lines = [
        "",
        "| report | what was seen there | what was sent | what vinfer does | outcome |",
        "|---|---|---|---|---|",
    ]
    for report, did in tried:
        outcome = f"{report.outcome}: {report.why}" if report.why else report.outcome
        cells = (report.place, report.seen, report.sent, _short(did), outcome)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join((*counts, *lines)) + "\n"


def _short(text: str) -> str:
    line = " ".join(text.split()).replace("<", "&lt;")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."
