"""The documents tell the truth: keys, routes, metrics, exit codes files named are those of the code."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny.families import FAMILY_MODELS
from tiny.vision_models import VISION_MODELS

from vinfer.checkpoint.families import FAMILIES
from vinfer.config import ServerConfig, load_config, reference_table
from vinfer.errors import VinferError
from vinfer.server.app import METRICS_ROUTE, ROUTES
from vinfer.server.metrics import ServerMetrics
from vinfer.server.model_table import ModelTable

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
CLIENTS = ("openai", "openai-node", "llm", "langchain-openai", "pydantic-ai-slim", "instructor", "lm-eval")


def test_readme_has_the_config_reference() -> None:
    """Regenerate with `vinfer config reference`."""
    begin, end = "a test keeps it equal -->\n", "<!-- end of config reference -->"
    assert README.split(begin)[1].split(end)[0].strip() == reference_table().strip()


def test_readme_names_every_route() -> None:
    missing = [path for _, path, _ in (*ROUTES, METRICS_ROUTE) if path.replace(":path", "") not in README]
    assert not missing


def test_readme_names_every_metric() -> None:
    exposition = ServerMetrics(ModelTable(["m"]), lambda: 0).render().decode()
    names = {line.split()[2] for line in exposition.splitlines() if line.startswith("# TYPE")}
    assert len(names) > 5
    assert not [name for name in names if name not in README]


def _subclasses(base: type[VinferError]) -> list[type[VinferError]]:
    return [base, *(found for child in base.__subclasses__() for found in _subclasses(child))]


def test_readme_explains_every_exit_code() -> None:
    documented = {
        int(code) for row in re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE) for code in row.split(",")
    }
    assert {error.exit_code for error in _subclasses(VinferError)} <= documented


def test_readme_names_every_family() -> None:
    [listed] = re.findall(r"^Families served.*?;", README, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) - {"model_type"} == set(FAMILIES)


def test_every_family_served_was_proven() -> None:
    """`scripts/parity` writes the matrix: a family that is not in it, or wrong there, is not served."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (ROOT / "docs" / "models.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| family")
    ]
    assert {row[0] for row in rows} == set(FAMILIES)
    assert {row[1] for row in rows} == {*FAMILY_MODELS, *VISION_MODELS}
    assert {row[-1] for row in rows} == {"right"}


def test_every_client_was_run_in_its_locked_version() -> None:
    """`scripts/clients` writes the table: after a new lock it has to run again."""
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (ROOT / "docs" / "clients.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| client")
    ]
    lock = (ROOT / "requirements" / "clients.txt").read_text()
    locked = dict(re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE))
    node_lock = json.loads((ROOT / "scripts/client_runs/node/package-lock.json").read_text())
    locked["openai-node"] = node_lock["packages"]["node_modules/openai"]["version"]
    ran = {(row[0], row[1]) for row in rows if row[0] != "the server"}
    assert ran == {(client, locked[client]) for client in CLIENTS}
    assert {row[3] for row in rows} == {"passed"}


def test_links_and_scripts_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README + ARCHITECTURE) if "://" not in link]
    scripts = re.findall(r"scripts/[\w-]+", README + ARCHITECTURE)
    assert links
    assert scripts
    assert not [name for name in (*links, *scripts) if not (ROOT / name).exists()]


def test_architecture_names_every_file() -> None:
    files = [path for path in (ROOT / "vinfer").rglob("*.py") if path.name != "__init__.py"]
    assert not [path.name for path in files if f"`{path.name}`" not in ARCHITECTURE.replace("vinfer/", "")]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_example_configs_load_and_open_with_their_command(path: Path) -> None:
    load_config(path, environ={})
    head = path.read_text().split("\nserver:")[0]
    assert f"vinfer serve configs/{path.name}" in head
    assert "$schema=vinfer.schema.json" in head
    assert "Hardware" in head


def test_the_first_screen_of_the_readme_loads(tmp_path: Path) -> None:
    block = README.split("## The YAML file")[1].split("\n\n")[1]
    file = tmp_path / "readme.yaml"
    file.write_text("\n".join(line[4:] for line in block.splitlines()))
    assert load_config(file, environ={}).models[0].name == "llama"


def test_documented_commands_exist() -> None:
    commands = {
        match for match in re.findall(r"vinfer (config \w+|\w+)(?= |`|\n)", README) if match[0].islower()
    }
    known = {"serve", "precompile", "config show", "config schema", "config reference"}
    assert known & commands
    for command in known & commands:
        run = subprocess.run(
            [sys.executable, "-m", "vinfer", *shlex.split(command), "--help"],
            capture_output=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr


def test_server_defaults_in_the_readme() -> None:
    defaults = ServerConfig()
    assert f"host: {defaults.host}, port: {defaults.port}" in README
