"""Children run our code wherever a command runs, and one that is busy when its parent is killed ends too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vinfer.child_process import PYTHON, how_it_ended

# Holds the pipe to the test open for as long as it lives, and reads nothing.
BUSY_CHILD = """
import time
from vinfer.child_process import end_with_parent

end_with_parent()
print("busy", flush=True)
time.sleep(60)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY_CHILD!r}])"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_busy_child_ends_with_its_parent(end: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "busy\n"
        os.kill(parent.pid, end)
        # Until the end of the pipe, which comes when nobody can write to it any more.
        assert parent.communicate(timeout=20) == ("", None)
        assert parent.returncode == -end


def test_how_a_child_ended_is_said_in_words() -> None:
    assert how_it_ended(-9) == "signal 9 (out of memory?)"
    assert how_it_ended(3) == "exit code 3"


@pytest.mark.parametrize(("python", "is_ours"), [(PYTHON, True), (PYTHON[:1], False)])
def test_a_child_imports_nothing_from_the_current_directory(
    tmp_path: Path, python: tuple[str, ...], is_ours: bool
) -> None:
    """Such as another checkout, or a file named like a module. The second case shows what would happen."""
    for name in ("vinfer/__init__.py", "json.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    child = subprocess.run(
        [*python, "-m", "vinfer", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (child.returncode == 0) == is_ours, child.stderr
