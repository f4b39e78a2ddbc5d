"""The command line of scripts/clients: makes environments, runs a server and clients, writes the table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmark.process import serving

from client_runs.environments import install_node, install_python
from client_runs.pictures import VARIABLE as PICTURE_VARIABLE
from client_runs.pictures import config_of, make_picture
from client_runs.places import (
    CLIENTS,
    GENERATORS,
    NODE_CLIENTS,
    NODE_GENERATORS,
    ROOT,
    SERVER,
    python,
)
from client_runs.rows import FAILED, NOT_RUN, PASSED, Row
from client_runs.table import document
from vinfer.bench.client import fetch
from vinfer.errors import AnswerError

PROGRAMS = (
    "openai_python",
    "openai_python_history",
    "openai_node",
    "openai_node_history",
    "anthropic_python",
    "anthropic_node",
    "agents_sdk",
    "ai_sdk",
    "litellm_chat",
    "llm_command",
    "langchain",
    "pydantic_agent",
    "instructor_types",
    "llm_comply_suites",
    "lm_eval_task",
    "generated_clients",
)
NODE_PROGRAMS = {
    "openai_node": "openai-node",
    "openai_node_history": "openai-node",
    "anthropic_node": "anthropic-node",
    "ai_sdk": "ai",
}
OVERRIDES = ("models[0].prompt_logprobs=true", "models[0].embeddings=mean", "models[0].verify=off")
COMPILES = "vinfer:post_ready_compiles_total"
READY_SECONDS = 1800
PROGRAM_SECONDS = 1800
PAGE = ROOT / "docs" / "reports" / "clients.md"


def main(description: str | None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="scripts/clients", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "program", nargs="*", help=f"run only these and do not write the page: {', '.join(PROGRAMS)}"
    )
    chosen = parser.parse_args().program
    if unknown := set(chosen) - set(PROGRAMS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}; choose from {', '.join(PROGRAMS)}")
    try:
        programs = chosen or PROGRAMS
        install_python(has_generators="generated_clients" in programs)
        rows = _run(programs)
    except (AnswerError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"clients: error: {error}\n")
        return 1
    page = document(rows)
    if chosen:
        print(page)
    else:
        PAGE.write_text(page)
    counts = {result: sum(row.result == result for row in rows) for result in (PASSED, FAILED, NOT_RUN)}
    print(", ".join(f"{count} {result}" for result, count in counts.items()))
    return 1 if counts[FAILED] else 0


def _run(programs: tuple[str, ...] | list[str]) -> list[Row]:
    no_node = install_node(NODE_CLIENTS) if NODE_PROGRAMS.keys() & programs else None
    if "generated_clients" in programs:
        install_node(NODE_GENERATORS)
    overrides = [word for override in OVERRIDES for word in ("--set", override)]
    with _pictures(), _serving(ROOT / "configs" / "smollm2.yaml", *overrides) as url:
        rows = list(_all_rows(programs, url, no_node))
        return [*rows, _compiles(url)]


@contextlib.contextmanager
def _serving(config: Path, *options: str) -> Iterator[str]:
    command = [str(SERVER / "bin" / "vinfer"), "serve", str(config), "--port", "{port}", *options]
    with serving(command, ready_path="/readiness", timeout_seconds=READY_SECONDS) as (url, _):
        yield url


@contextlib.contextmanager
def _pictures() -> Iterator[None]:
    """Serve the model of pictures and tell the clients of it, if torch is here to make it."""
    picture = make_picture()
    if picture is None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="vinfer-clients-") as scratch:
        config, file = Path(scratch, "pictures.yaml"), Path(scratch, "picture.json")
        config.write_text(config_of(picture))
        with _serving(config) as url:
            file.write_text(json.dumps({**picture, "url": url}))
            os.environ[PICTURE_VARIABLE] = str(file)
            yield


def _all_rows(programs: tuple[str, ...] | list[str], url: str, no_node: str | None) -> Iterator[Row]:
    for program in programs:
        if program in NODE_PROGRAMS and no_node:
            yield Row(NODE_PROGRAMS[program], "", "everything", NOT_RUN, no_node)
            continue
        for row in _rows_of(program, url):
            sys.stderr.write(f"[clients] {row.client}: {row.ran}: {row.result}: {row.remark}\n")
            yield row


def _rows_of(program: str, url: str) -> Iterator[Row]:
    """Run one client; a program that fails also becomes a row."""
    if program in NODE_PROGRAMS:
        command, folder = ["node", f"{program}.mjs", url], NODE_CLIENTS
    elif program == "generated_clients":
        command = [str(python(GENERATORS)), "-m", f"client_runs.programs.{program}", url]
        command.append(str(NODE_GENERATORS / "node_modules"))
        folder = Path(__file__).parents[1]
    else:
        command = [str(python(CLIENTS)), "-m", f"client_runs.programs.{program}", url]
        folder = Path(__file__).parents[1]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=PROGRAM_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        yield Row(program, "", "everything", FAILED, f"did not finish within {error.timeout:.0f} s")
        return
    yield from (Row(**json.loads(line)) for line in done.stdout.splitlines())
    if done.returncode:
        yield Row(program, "", "everything", FAILED, f"exited with {done.returncode}")


def _compiles(url: str) -> Row:
    """Return the row that checks that no client made the server compile."""
    lines = fetch(f"{url}/metrics").decode().splitlines()
    count = sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(COMPILES))
    version = json.loads(fetch(f"{url}/version"))["version"]
    result = FAILED if count else PASSED
    return Row("the server", version, "compiles after ready, after all clients", result, f"{count:.0f}")
