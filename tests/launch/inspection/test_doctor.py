"""`vinfer doctor`: what is found, and what is said about what is missing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import vinfer
from vinfer.errors import DeviceError
from vinfer.launch.inspection import doctor

OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(autouse=True)
def no_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are looked for in a process of their own, by the last test."""
    monkeypatch.setattr(doctor, "_devices", lambda: {"platform": "cpu"})


def examined(cache: Path, **environ: str) -> dict[str, Any]:
    return doctor.examine(cache, environ=environ or OFFLINE)


def test_a_cache_that_is_not_there_yet_is_no_problem(tmp_path: Path) -> None:
    cache = examined(tmp_path / "a" / "b")["cache_dir"]
    assert cache == {
        "path": str(tmp_path / "a" / "b"),
        "exists": False,
        "free_bytes": cache["free_bytes"],
        "problem": None,
    }
    assert cache["free_bytes"] > 0
    assert not (tmp_path / "a").exists()


def test_a_cache_that_everybody_may_write_is_not_trusted(tmp_path: Path) -> None:
    assert examined(tmp_path)["cache_dir"]["problem"] is None
    tmp_path.chmod(0o777)
    problem = examined(tmp_path)["cache_dir"]["problem"]
    assert problem == f"machine code is not used: everybody may write {tmp_path}: run chmod o-w on it"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert examined(tmp_path)["cache_dir"]["problem"].startswith(f"{tmp_path} cannot be written")


def test_the_hub(tmp_path: Path) -> None:
    assert examined(tmp_path)["hub"] == "not used: HF_HUB_OFFLINE is set"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        endpoint = f"http://127.0.0.1:{sock.getsockname()[1]}"
        found = examined(tmp_path, HF_ENDPOINT=endpoint, HF_TOKEN="secret")
    assert (found["hub"], found["hub_token"]) == ("127.0.0.1 can be reached", True)
    assert "secret" not in json.dumps(found)
    unreached = examined(tmp_path, HF_ENDPOINT=endpoint)["hub"]
    assert unreached.startswith("127.0.0.1 cannot be reached (")


def test_no_device_is_an_error() -> None:
    doctor.require_device({"devices": {"platform": "cpu"}})
    with pytest.raises(DeviceError, match="JAX finds no device: none"):
        doctor.require_device({"devices": {"problem": "JAX finds no device: none"}})


@pytest.mark.processes
def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vinfer", "doctor", "--cache-dir", str(tmp_path)]
    environ = {**os.environ, **OFFLINE, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=environ)
    found = json.loads(run.stdout)
    assert found["vinfer"] == vinfer.__version__
    assert found["devices"]["platform"] == "cpu"
    assert found["devices"]["memory_bytes"] > 0
    environ["JAX_PLATFORMS"] = "tpu"
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    assert run.returncode == DeviceError.exit_code
    assert "JAX finds no device" in run.stdout
    assert "JAX finds no device" in run.stderr
