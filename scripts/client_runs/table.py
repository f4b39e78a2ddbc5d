"""Rows to docs/reports/clients.md."""

from __future__ import annotations

from collections.abc import Sequence

from client_runs.rows import Row

LONGEST_REMARK = 160

HEAD = """\
# Clients

Written by `scripts/clients`; do not edit. Clients as they are published, of the versions of
`requirements/clients.txt` and of `scripts/client_runs/node/package-lock.json`, against `vinfer serve` with
SmolLM2-135M-Instruct ([configs/smollm2.yaml](../../configs/smollm2.yaml), with `prompt_logprobs` and
`embeddings`), over HTTP and greedy unless a seed is named.

A row has passed if nothing was raised *and* the answer is right: text and calls are those of the same request
sent as plain JSON, types and schemas are satisfied, a tool was called and the answer after its result came.
`openai` validates every answer and event strictly, unless its row says otherwise. What a model of this size
says is its own.

"""


def document(rows: Sequence[Row]) -> str:
    """Return the whole page."""
    lines = ["| client | version | what was run | result | remark |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (row.client, row.version, row.ran, row.result, _short(row.remark))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join(lines) + "\n"


def _short(remark: str) -> str:
    """Put a remark into one line of a cell, not too long, in which `<` begins no tag."""
    line = " ".join(remark.split()).replace("<", "&lt;")
    return line if len(line) <= LONGEST_REMARK else f"{line[:LONGEST_REMARK]} ..."
