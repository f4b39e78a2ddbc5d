"""The `llm` command: reaches the server through its address, and through a configured model.

python -m client_runs.programs.llm_command URL
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jsonschema

from client_runs.questions import CITY_REQUEST, MESSAGES, QUESTION
from client_runs.raw import MODEL, RawServer
from client_runs.rows import expect_equal, run_checks

GREEDY = ("-o", "temperature", "0")
FIELDS = "name, country, population int"
FIELDS_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "country": {"type": "string"},
        "population": {"type": "integer"},
    },
    "required": ["name", "country", "population"],
    "additionalProperties": False,
}
ALIAS = "our-smollm2"
TIMEOUT_SECONDS = 300


class Llm:
    """The installed command, with its own configuration in `folder`."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._command = str(Path(sys.executable).with_name("llm"))
        self._environment = {**os.environ, "LLM_USER_PATH": str(folder), "OPENAI_API_KEY": "unused"}
        # JSON is YAML.
        served = {
            "model_id": ALIAS,
            "model_name": MODEL,
            "api_base": f"{url}/v1",
            "supports_schema": True,
        }
        (folder / "extra-openai-models.yaml").write_text(json.dumps([served]))

    def run(self, *arguments: str) -> str:
        """Return what the command prints.

        Raises:
            AssertionError: it failed; the message has its last line.
        """
        done = subprocess.run(
            [self._command, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_SECONDS,
        )
        assert done.returncode == 0, done.stderr.strip().splitlines()[-1:]
        return done.stdout.strip()

    def endpoint(self, *arguments: str) -> str:
        return self.run("openai", "endpoint", f"{self.url}/v1", *arguments)


def listed(llm: Llm, raw: RawServer) -> str:
    del raw
    expect_equal(llm.endpoint("--models"), MODEL)
    return MODEL


def _plain(*arguments: str) -> Callable[[Llm, RawServer], str]:
    def check(llm: Llm, raw: RawServer) -> str:
        text = llm.endpoint("-m", MODEL, QUESTION, *GREEDY, *arguments)
        expect_equal(text, raw.chat(messages=MESSAGES)["message"]["content"])
        return text

    return check


def _with_schema(*arguments: str) -> Callable[[Llm, RawServer], str]:
    def check(llm: Llm, raw: RawServer) -> str:
        del raw
        text = llm.endpoint("-m", MODEL, CITY_REQUEST, *GREEDY, "--schema", FIELDS, *arguments)
        jsonschema.validate(json.loads(text), FIELDS_SCHEMA)
        return text

    return check


def configured(llm: Llm, raw: RawServer) -> str:
    text = llm.run("-m", ALIAS, QUESTION, *GREEDY)
    expect_equal(text, raw.chat(messages=MESSAGES)["message"]["content"])
    return text


def configured_with_schema(llm: Llm, raw: RawServer) -> str:
    del raw
    text = llm.run("-m", ALIAS, CITY_REQUEST, *GREEDY, "--schema", json.dumps(FIELDS_SCHEMA))
    jsonschema.validate(json.loads(text), FIELDS_SCHEMA)
    return text


CHECKS: dict[str, Callable[[Llm, RawServer], str]] = {
    "`llm openai endpoint --models`": listed,
    "`llm openai endpoint`, streamed": _plain(),
    "`llm openai endpoint --no-stream`": _plain("--no-stream"),
    "`llm openai endpoint --responses`": _plain("--responses"),
    f"`llm openai endpoint --schema '{FIELDS}'`": _with_schema(),
    "`--schema` with `--no-stream`": _with_schema("--no-stream"),
    "`--schema` with `--responses`": _with_schema("--responses"),
    "`llm -m`, a model of extra-openai-models.yaml": configured,
    "`llm -m`, `--schema` with a JSON Schema": configured_with_schema,
}


def main(url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_checks("llm", CHECKS, Llm(url, Path(folder)), RawServer(url))


if __name__ == "__main__":
    main(sys.argv[1])
