"""llm-comply: its suites for OpenAI's chat completions, Open Responses and Anthropic's messages.

python -m client_runs.programs.llm_comply_suites URL
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from client_runs.pictures import MODEL as PICTURES
from client_runs.pictures import read_picture
from client_runs.raw import MODEL
from client_runs.rows import FAILED, NOT_RUN, PASSED, Row

Json = dict[str, Any]

IMAGE_TESTS = {
    "openai-chat": "chat-image-input",
    "open-responses": "image-input",
    "anthropic": "anth-image-input",
}
"""Formats, and the id of each one's test that sends an image."""
EXPLAINED = {
    "Image Input": "no model for images, because torch is not installed",
    "Compaction Endpoint": "vinfer keeps nothing between requests, and has no such route",
    "Reasoning Summary": "for models that reason",
    "Thinking Display": "for models that reason",
}
"""Tests that this model or a stateless server cannot pass."""


def main(url: str) -> None:
    picture = read_picture()
    for name, image_test in IMAGE_TESTS.items():
        results = _results(url, name, MODEL)
        if picture is not None:
            (of_image,) = _results(picture["url"], name, PICTURES, "--filter", image_test)
            results = [of_image if test["name"] == of_image["name"] else test for test in results]
        for test in results:
            _row(name, test).print()


def _results(url: str, name: str, model: str, *options: str) -> list[Json]:
    program = Path(sys.executable).with_name("llm-comply")
    command = [
        str(program),
        "run",
        "-u",
        f"{url}/v1",
        "-k",
        "unused",
        "-m",
        model,
        "--format",
        name,
        "--json",
    ]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=False)
    results: list[Json] = json.loads(done.stdout)["results"]
    return results


def _row(name: str, test: Json) -> Row:
    result, remark = PASSED, ""
    if test["status"] != "passed" or test.get("warnings"):
        found = [*test.get("errors", ()), *test.get("warnings", ())]
        explained = EXPLAINED.get(test["name"])
        result, remark = (NOT_RUN, explained) if explained else (FAILED, "; ".join(found) or test["status"])
    return Row("llm-comply", version("llm-comply"), f"{name}: {test['name']}", result, remark)


if __name__ == "__main__":
    main(sys.argv[1])
