"""A child that is busy when its parent is killed does not stay behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from vinfer.child_process import how_it_ended

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
