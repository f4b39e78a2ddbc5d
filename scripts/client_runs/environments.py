"""Creates the environments of server and clients with scripts/install and npm."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from client_runs.places import CLIENTS, NODE_CLIENTS, ROOT, SERVER

LEAST_NODE = 20
NODE_SOURCES = Path(__file__).with_name("node")


def install_python() -> None:
    """Create both Python environments unless they are up to date.

    Raises:
        CalledProcessError: installation failed; its output was printed.
    """
    for place, *names in ((SERVER, "dev", "demo"), (CLIENTS, "clients")):
        relative = place.relative_to(ROOT)
        subprocess.run(["scripts/install", relative, *names], cwd=ROOT, stdout=sys.stderr, check=True)


def install_node() -> str | None:
    """Install package-lock.json's packages next to a copy of the program; return the reason if it cannot.

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
    shutil.copytree(NODE_SOURCES, NODE_CLIENTS, dirs_exist_ok=True)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=NODE_CLIENTS, stdout=sys.stderr, check=True)
    return None
