"""Two first mistakes whose next move is a build: a bundle of another format, and a disk that is full."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny.checkpoints import checkpoint

from vinfer.bundle.manifest import FORMAT_VERSION
from vinfer.errors import BuildError, BundleError

FULL_DISK = """
import shutil, sys
from vinfer.cli import main
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1 << 30, (1 << 30) - 1000, 1000)
sys.argv[0] = "vinfer"
main()
"""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=300
    )


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the message of a command that failed."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.bundles("llama")
def test_an_old_bundle_on_a_full_disk(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    old = tmp_path / "bundle"
    shutil.copytree(bundle_of("llama"), old)
    manifest = json.loads((old / "manifest.json").read_text())
    (old / "manifest.json").write_text(json.dumps({**manifest, "format_version": FORMAT_VERSION - 1}))
    message = refused(run("-m", "vinfer", "serve", old, "--port", "0"), BundleError.exit_code)
    assert f"format_version is {FORMAT_VERSION - 1}, this vinfer reads {FORMAT_VERSION}" in message
    assert message.endswith("run vinfer precompile again")

    config = tmp_path / "config.yaml"
    config.write_text(
        f"models: [{{name: m, source: {checkpoint('llama')}, num_slots: 1, "
        "max_model_len: 64, verify: 'off', precompile: [{batch_size: 1, prefill_length: 32}]}]\n"
        f"cache_dir: {tmp_path}/cache\n"
    )
    precompile = ("precompile", config, "--output", old)
    message = refused(run("-c", FULL_DISK, *precompile), BuildError.exit_code)
    assert "GiB on disk for its bundle" in message
    assert message.endswith("free some space, or set cache_dir to a directory on another disk")

    done = run("-m", "vinfer", *precompile)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{old}{os.linesep}"
    assert run("-m", "vinfer", "plan", old).returncode == 0
