"""Runs the measured server as a process: starts it, times it until it is ready, and stops it.

Its output goes to a file, whose end is shown if the server does not become ready.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from vinfer.bench.client import fetch
from vinfer.errors import AnswerError

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.05
STOP_SECONDS = 60.0


def vinfer_command(config: Path, vinfer: str | None) -> list[str]:
    """Return the command that serves a config; `{port}` stands for the port.

    Raises:
        AnswerError: vinfer is not found in any of the usual places.
    """
    beside = Path(sys.executable).with_name("vinfer")
    places = [beside, ROOT / ".venv/run/bin/vinfer", ROOT / ".venv/dev/bin/vinfer"]
    found = vinfer or next((str(place) for place in places if place.is_file()), shutil.which("vinfer"))
    if found is None:
        raise AnswerError(
            "vinfer is not installed: run scripts/install .venv/run build demo, or set --vinfer"
        )
    return [found, "serve", str(config), "--port", "{port}"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@dataclasses.dataclass(frozen=True)
class Served:
    """A server that is ready.

    Attributes:
        ready_seconds: from process start until it was ready.
        began: when the process was started, on the clock `time.perf_counter`.
    """

    url: str
    ready_seconds: float
    pid: int
    began: float


@contextlib.contextmanager
def serving(command: list[str], *, ready_path: str, timeout_seconds: float) -> Iterator[tuple[str, float]]:
    """Start a server; yield its address and the seconds from process start until it was ready.

    Raises:
        AnswerError: it exited, or was not ready in time.
    """
    with started(command, ready_path=ready_path, timeout_seconds=timeout_seconds) as served:
        yield served.url, served.ready_seconds


@contextlib.contextmanager
def started(
    command: list[str],
    *,
    ready_path: str,
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Start a server in a process group of its own, wait until it is ready, and end the whole group.

    Args:
        environment: variables that the server has besides those of this process.

    Raises:
        AnswerError: it exited, or was not ready in time.
    """
    port = free_port()
    words = [word.replace("{port}", str(port)) for word in command]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**_variables(), **(environment or {})},
            start_new_session=True,
        )
        try:
            while not _is_ready(url + ready_path):
                if process.poll() is not None or time.perf_counter() - began > timeout_seconds:
                    log.seek(0)
                    last = "".join(log.readlines()[-10:])
                    raise AnswerError(f"{shlex.join(words)} did not become ready:\n{last}")
                time.sleep(POLL_SECONDS)
            yield Served(url, time.perf_counter() - began, process.pid, began)
        finally:
            _end(process)


def _variables() -> dict[str, str]:
    """Return this process's variables, without one that some containers set and few users do.

    With it, each start of a Python server compiles what it imports.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    # Some servers leave workers behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _is_ready(url: str) -> bool:
    try:
        fetch(url, timeout_seconds=5)
    except AnswerError:
        return False
    return True
