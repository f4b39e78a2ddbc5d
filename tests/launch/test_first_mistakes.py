"""What new users get wrong first: one message, no traceback, and its next move, followed until it works.

The figures of a plan are enough to see that a config is right; what only a build shows is in
tests/compiler/test_first_builds.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from checkpoint.conftest import tiny_model, write_hf_directory
from checkpoint.test_sources import COMMIT, FakeHub

from vinfer.errors import BindError, CheckpointError, ConfigError, DeviceError

pytestmark = pytest.mark.processes
CONFIG = """\
cache_dir: {directory}/cache
models:
  - name: tiny
    source: {directory}/checkpoint
    num_slots: 2
    precompile:
      - {{batch_size: 1, prefill_length: 32}}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_hf_directory(tmp_path / "checkpoint", tiny_model("llama"))
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(directory=tmp_path))
    return path


def vinfer(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vinfer", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment}
    )


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one message of a command that failed."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    [line] = [line for line in done.stderr.splitlines() if " INFO " not in line]
    return line


def plan(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return vinfer("plan", config, "--json", *arguments)


def works(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 0 and bool(json.loads(done.stdout)["fits"])


def replace(config: Path, old: str, new: str) -> None:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def found(pattern: str, message: str) -> str:
    """Return what a message says at the group of a pattern."""
    match = re.search(pattern, message)
    assert match is not None, message
    return match[1]


def test_a_typo_in_a_key(config: Path) -> None:
    replace(config, "num_slots", "num_slot")
    message = refused(vinfer("config", "check", config), ConfigError.exit_code)
    assert f"{config}:5:" in message
    replace(config, "num_slot:", found(r"did you mean (\w+)\?", message) + ":")
    assert vinfer("config", "check", config).returncode == 0


def test_a_wrong_indentation(config: Path) -> None:
    replace(config, "    num_slots: 2", "   num_slots: 2")
    message = refused(vinfer("config", "check", config), ConfigError.exit_code)
    line = int(found(rf"{re.escape(str(config))}:(\d+):", message))
    lines = config.read_text().splitlines(keepends=True)
    assert lines[line - 1].lstrip().startswith("num_slots")
    assert "indent" in message
    # As far in as the key above it.
    config.write_text("".join([*lines[: line - 1], "    num_slots: 2\n", *lines[line:]]))
    assert vinfer("config", "check", config).returncode == 0


def test_a_model_that_is_not_there(config: Path, tmp_path: Path) -> None:
    replace(config, f"{tmp_path}/checkpoint", f"{tmp_path}/chekpoint")
    message = refused(plan(config), CheckpointError.exit_code)
    replace(config, f"{tmp_path}/chekpoint", found(r"did you mean (\S+)\?", message))
    assert works(plan(config))


class _GatedHub(FakeHub):
    """Lets in only whoever has a token."""

    def _answer(self, with_body: bool) -> None:
        if self.headers.get("Authorization") == "Bearer hf_right":
            super()._answer(with_body)
            return
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextlib.contextmanager
def gated_hub(directory: Path) -> Iterator[str]:
    handler = type("_Handler", (_GatedHub,), {"directory": directory, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_gated_model(config: Path, tmp_path: Path) -> None:
    replace(config, f"{tmp_path}/checkpoint", "org/name")
    with gated_hub(tmp_path / "checkpoint") as endpoint:
        environment = {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": f"{tmp_path}/hub",
            "HF_TOKEN": "",
        }
        message = refused(vinfer("plan", config, "--json", **environment), CheckpointError.exit_code)
        assert "access is gated: accept its terms on the hub and set HF_TOKEN" in message
        assert works(vinfer("plan", config, "--json", **{**environment, "HF_TOKEN": "hf_right"}))
    assert (tmp_path / "hub" / "hub" / "models--org--name" / "snapshots" / COMMIT).is_dir()


def test_a_mesh_that_the_machine_lacks(config: Path) -> None:
    replace(config, "    num_slots: 2", "    num_slots: 2\n    mesh: {tp: 2}")
    message = refused(plan(config), DeviceError.exit_code)
    assert works(plan(config, "--devices", found(r"--devices (cpu:\d+) makes as many", message)))


def test_a_mesh_that_the_model_does_not_divide_into(config: Path) -> None:
    replace(config, "    num_slots: 2", "    num_slots: 3\n    mesh: {tp: 3}")
    message = refused(plan(config, "--devices", "cpu:3"), ConfigError.exit_code)
    tp = found(r"legal tp: (\d+)", message)
    assert works(plan(config, "--devices", f"cpu:{tp}", "--set", f"models[0].mesh.tp={tp}"))


def test_a_context_that_is_too_long(config: Path) -> None:
    replace(config, "    num_slots: 2", "    num_slots: 2\n    max_model_len: 100000")
    message = refused(plan(config), ConfigError.exit_code)
    longest = found(r"the checkpoint supports (\d+) positions: lower max_model_len", message)
    replace(config, "100000", longest)
    assert works(plan(config))


def test_no_accelerator(config: Path) -> None:
    message = refused(vinfer("serve", config, "--port", "0", "--devices", "tpu:4"), DeviceError.exit_code)
    assert "JAX found cpu on this machine: leave --devices out to use what is here" in message
    assert works(plan(config))


def test_a_port_that_is_taken(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = refused(vinfer("serve", config, "--port", port), BindError.exit_code)
    assert (
        f"127.0.0.1:{port}: Address already in use: stop what uses it or choose another server.port"
        in message
    )
    # It is free again. What the server then lacks is a model, so it got further.
    message = refused(
        vinfer("serve", config, "--port", port, "--set", "models[0].source=none"), CheckpointError.exit_code
    )
    assert "none does not exist" in message
