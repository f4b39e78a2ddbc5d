"""Creates the environments of server and clients with scripts/install and npm."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from client_runs.places import CLIENTS, GENERATORS, NODE_CLIENTS, NODE_GENERATORS, ROOT, SERVER

LEAST_NODE = 20
NODE_SOURCES = {
    NODE_CLIENTS: Path(__file__).with_name("node"),
    NODE_GENERATORS: Path(__file__).with_name("node_generators"),
}


def install_python(*, has_generators: bool) -> None:
    """Create the Python environments unless they are up to date.

    Raises:
        CalledProcessError: installation failed; its output was printed.
    """
    places = [(SERVER, "dev", "demo"), (CLIENTS, "clients")]
    if has_generators:
        places.append((GENERATORS, "generators"))
    for place, *names in places:
        relative = place.relative_to(ROOT)
        subprocess.run(["scripts/install", relative, *names], cwd=ROOT, stdout=sys.stderr, check=True)


def install_node(place: Path) -> str | None:
    """Install package-lock.json's packages in one of `NODE_SOURCES`; return the reason if it cannot.

    Raises:
        CalledProcessError: installation failed; its output was printed.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return "node or npm is missing"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    major = re.match(r"v(\d+)", version)
    if major is None or int(major[1]) < LEAST_NODE:
        return f"node is {version}; the clients need at least {LEAST_NODE}"
    shutil.copytree(NODE_SOURCES[place], place, dirs_exist_ok=True)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=place, stdout=sys.stderr, check=True)
    return None
