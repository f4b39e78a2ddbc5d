"""Formats rows as docs/reports/clients.md."""

from __future__ import annotations

from collections.abc import Sequence

from client_runs.rows import Row

LONGEST_REMARK = 160

HEAD = """\
# Clients

Written by `scripts/clients`; do not edit. Published clients, in the versions of `requirements/clients.txt`
and `scripts/client_runs/node/package-lock.json`, run against `vinfer serve` with SmolLM2-135M-Instruct
([configs/smollm2.yaml](../../configs/smollm2.yaml), with `prompt_logprobs` and `embeddings`). Requests go
over HTTP and are greedy unless a row names a seed.

A row passes if nothing is raised *and* the answer is right: text and calls equal those of the same request
sent as plain JSON, types and schemas are satisfied, and tools are called and their results answered. `openai`
and `anthropic` validate every answer and event strictly unless a row says otherwise. What a model of this
size says is not judged.

"""


def document(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    lines = ["| client | version | what was run | result | remark |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (row.client, row.version, row.ran, row.result, _short(row.remark))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def _short(remark: str) -> str:
    """Fit a remark into one line of a cell: shorten it and escape `<`."""
    line = " ".join(remark.split()).replace("<", "&lt;")
    return line if len(line) <= LONGEST_REMARK else f"{line[:LONGEST_REMARK]} ..."
