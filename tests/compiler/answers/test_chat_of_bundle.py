"""`vinfer chat DIR` serves a bundle for one question, and leaves no process behind."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from compiling import as_served
from tiny.checkpoints import CACHE


@pytest.mark.bundles("llama")
def test_a_bundle_is_served_for_a_question(bundle_of: Callable[[str], Path]) -> None:
    mark = uuid.uuid4().hex
    with as_served():
        # Other tests keep the code of the same programs there.
        environment = {**os.environ, "VINFER_XLA_CACHE": str(CACHE / "test-code"), "TEST_MARK": mark}
    command = [sys.executable, "-m", "vinfer", "chat", str(bundle_of("llama")), "hi", "--stats"]
    process = subprocess.run(
        [*command, "--field", "max_tokens=4", "--field", "ignore_eos=true"],
        input="",
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.endswith("\n")
    lines = process.stderr.splitlines()
    assert lines[0] == "starting jax"
    assert any(line.startswith("preparing programs") for line in lines)
    assert "4 tokens; prompt of" in lines[-1]
    assert [pid for pid in _processes() if mark.encode() in _environment_of(pid)] == []


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def _environment_of(pid: str) -> bytes:
    try:
        return Path("/proc", pid, "environ").read_bytes()
    except OSError:
        return b""
