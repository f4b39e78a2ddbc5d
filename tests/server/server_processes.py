"""Starts a server with a fake engine in a process of its own, for tests that send it signals."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent


def write_config(tmp_path: Path, *, server: dict[str, Any], **fields: Any) -> Path:
    """Write the YAML file of a server with one model; JSON is YAML."""
    path = tmp_path / "server.yaml"
    model = {"name": "fake", "source": "org/fake", **fields.pop("model", {})}
    path.write_text(json.dumps({"server": server, "models": [model], **fields}), encoding="utf-8")
    return path


@contextlib.contextmanager
def server_process(tmp_path: Path, **fields: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start it, and yield the process and its URL; see `write_config`."""
    config = write_config(tmp_path, **fields)
    command = [sys.executable, str(HERE / "served_process.py"), str(tmp_path / "t"), str(config)]
    places = [str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = f"http://127.0.0.1:{int(process.stdout.readline())}"
            # It listens before it handles signals; once it answers, it does both.
            assert httpx.get(f"{url}/liveness", timeout=30).status_code == 200
            yield process, url
        finally:
            process.kill()


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for its end; return its exit code, what it printed and what it logged."""
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err
