"""Generators of clients: each makes one from /openapi.json, which then parses real answers of every route.

python -m client_runs.programs.generated_clients URL [NODE_MODULES]

NODE_MODULES has TypeScript; without it nothing is checked that needs node.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from openapi_spec_validator import OpenAPIV31SpecValidator

from client_runs.raw import RawServer
from client_runs.real_answers import real_answers
from client_runs.rows import FAILED, NOT_RUN, PASSED, Row, expect_equal

Answers = dict[str, list[Any]]

_BIN = Path(sys.executable).parent
_TSC_FLAGS = ("--strict", "--skipLibCheck", "--target", "es2020", "--moduleResolution", "node")
_PARSE_WITH_FETCH = """
const client = require("./js/index.js"), answers = require("./answers.json");
for (const [name, bodies] of Object.entries(answers)) for (const body of bodies) {
  const written = client[name + "ToJSON"](client[name + "FromJSON"](body));
  const lost = Object.keys(body).filter((key) => written[key] === undefined);
  if (lost.length) throw new Error(name + " loses " + lost);
}
"""


def main(url: str, node_modules: Path | None) -> None:
    raw = RawServer(url)
    document, answers = raw.get("/openapi.json"), real_answers(raw)
    checks: list[tuple[str, str, Callable[[Path], str]]] = [
        ("openapi-spec-validator", "validates the document", lambda _: _validate(document)),
        ("datamodel-code-generator", "pydantic models", lambda place: _datamodel(place, answers)),
        ("openapi-python-client", "a Python client", lambda place: _python_client(place, answers)),
        ("openapi-generator-cli", "python", lambda place: _openapi_python(place, answers)),
        ("openapi-generator-cli", "go", lambda place: _openapi_go(place)),
    ]
    in_node: list[tuple[str, str, Callable[[Path, Path], str]]] = [
        ("openapi-generator-cli", "typescript-fetch", lambda place, node: _fetch(place, answers, node)),
        ("openapi-typescript", "types of the answers", lambda place, node: _types(place, answers, node)),
    ]
    for package, ran, check in checks:
        _run(package, version(package), ran, check, document)
    for package, ran, check_in_node in in_node:
        if node_modules is None:
            Row(package, "", ran, NOT_RUN, "node or npm is missing").print()
            continue
        found = node_modules / package / "package.json"
        number = json.loads(found.read_text())["version"] if found.exists() else version(package)
        _run(package, number, ran, lambda place, c=check_in_node: c(place, node_modules), document)


def _run(package: str, number: str, ran: str, check: Callable[[Path], str], document: Any) -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        (place / "openapi.json").write_text(json.dumps(document))
        try:
            result, remark = PASSED, check(place)
        except subprocess.CalledProcessError as error:
            result, remark = FAILED, f"{error.stdout}{error.stderr}"[-300:]
        except Exception as error:  # noqa: BLE001 - whatever a generated client raises becomes its row
            result, remark = FAILED, f"{type(error).__name__}: {error}"[:300]
    Row(package, number, ran, result, remark).print()


def _validate(document: Any) -> str:
    OpenAPIV31SpecValidator(document).validate()
    return f"{len(document['components']['schemas'])} schemas"


def _datamodel(place: Path, answers: Answers) -> str:
    _call(
        place,
        [
            *(_BIN / "datamodel-codegen", "--input", "openapi.json", "--input-file-type", "openapi"),
            *("--output", "generated_models.py", "--output-model-type", "pydantic_v2.BaseModel"),
        ],
    )
    with _imported(place, "generated_models") as models:
        for name, body in _each(answers):
            getattr(models, name).model_validate(body)
    return _parsed(answers)


def _python_client(place: Path, answers: Answers) -> str:
    _call(
        place,
        [
            *(_BIN / "openapi-python-client", "generate", "--path", "openapi.json"),
            *("--output-path", "client", "--meta", "none"),
        ],
    )
    with _imported(place, "client.models") as models:
        for name, body in _each(answers):
            expect_equal(getattr(models, name).from_dict(body).to_dict(), body)
    return _parsed(answers)


def _openapi_python(place: Path, answers: Answers) -> str:
    _openapi_generator(place, "python")
    with _imported(place / "generated", "openapi_client") as client:
        for name, body in _each(answers):
            written = getattr(client, name).from_dict(body).to_dict()
            expect_equal(body.keys() - written.keys(), set())
    return _parsed(answers)


def _openapi_go(place: Path) -> str:
    _openapi_generator(place, "go")
    num_files = len(list((place / "generated").glob("*.go")))
    return f"{num_files} files, which nothing here compiles"


def _fetch(place: Path, answers: Answers, node_modules: Path) -> str:
    _openapi_generator(place, "typescript-fetch")
    generated = place / "generated"
    flags = [*_TSC_FLAGS, "--module", "commonjs", "--lib", "es2020,dom", "--outDir", "js"]
    _call(generated, [node_modules / ".bin" / "tsc", *flags, "index.ts"])
    (generated / "answers.json").write_text(json.dumps(answers))
    (generated / "parse.cjs").write_text(_PARSE_WITH_FETCH)
    _call(generated, ["node", "parse.cjs"])
    return _parsed(answers)


def _types(place: Path, answers: Answers, node_modules: Path) -> str:
    """Let the compiler hold each answer, as a literal, against its type."""
    _call(place, [node_modules / ".bin" / "openapi-typescript", "openapi.json", "-o", "api.ts"])
    lines = ['import type { components } from "./api";']
    for i, (name, body) in enumerate(_each(answers)):
        lines.append(f'export const answer{i}: components["schemas"]["{name}"] = {json.dumps(body)};')
    (place / "answers.ts").write_text("\n".join(lines))
    _call(place, [node_modules / ".bin" / "tsc", *_TSC_FLAGS, "--noEmit", "answers.ts"])
    return _parsed(answers)


def _openapi_generator(place: Path, kind: str) -> None:
    command = [_BIN / "openapi-generator-cli", "generate", "-i", "openapi.json", "-g", kind]
    _call(place, [*command, "-o", "generated"])


def _call(place: Path, command: list[Any]) -> None:
    subprocess.run(list(map(str, command)), cwd=place, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def _imported(place: Path, name: str) -> Iterator[Any]:
    sys.path.insert(0, str(place))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(place))


def _parsed(answers: Answers) -> str:
    return f"{sum(map(len, answers.values()))} answers parsed"


def _each(answers: Answers) -> Iterator[tuple[str, Any]]:
    for name, bodies in answers.items():
        for body in bodies:
            yield name, body


if __name__ == "__main__":
    modules = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    has_node = modules is not None and modules.exists() and shutil.which("node") is not None
    main(sys.argv[1], modules if has_node else None)
