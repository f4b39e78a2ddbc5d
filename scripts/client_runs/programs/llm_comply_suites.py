"""llm-comply: its suites for OpenAI's chat completions, Open Responses and Anthropic's messages.

python -m client_runs.programs.llm_comply_suites URL
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client_runs.raw import MODEL
from client_runs.rows import FAILED, NOT_RUN, PASSED, Row

FORMATS = ("openai-chat", "open-responses", "anthropic")
EXPLAINED = {
    "Image Input": "the model takes no images, and the 400 says so",
    "Compaction Endpoint": "vinfer keeps nothing between requests, and has no such route",
    "Reasoning Summary": "for models that reason",
    "Thinking Display": "for models that reason",
}
"""Tests that this model or a stateless server cannot pass."""


def main(url: str) -> None:
    for name in FORMATS:
        for row in _rows(url, name):
            row.print()


def _rows(url: str, name: str) -> Iterator[Row]:
    program = Path(sys.executable).with_name("llm-comply")
    command = [
        str(program),
        "run",
        "-u",
        f"{url}/v1",
        "-k",
        "unused",
        "-m",
        MODEL,
        "--format",
        name,
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    for test in json.loads(done.stdout)["results"]:
        yield _row(name, test)


def _row(name: str, test: dict[str, Any]) -> Row:
    result, remark = PASSED, ""
    if test["status"] != "passed" or test.get("warnings"):
        found = [*test.get("errors", ()), *test.get("warnings", ())]
        explained = EXPLAINED.get(test["name"])
        result, remark = (NOT_RUN, explained) if explained else (FAILED, "; ".join(found) or test["status"])
    return Row("llm-comply", version("llm-comply"), f"{name}: {test['name']}", result, remark)


if __name__ == "__main__":
    main(sys.argv[1])
