"""Runs a command whose standard streams are a terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
from collections.abc import Sequence


def on_terminal(command: Sequence[str], *, columns: int = 100, **environment: str) -> str:
    """Return what a command writes to a terminal; it must succeed."""
    master, slave = pty.openpty()
    size = {"COLUMNS": str(columns), "LINES": "40"}
    with subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, **size, **environment}
    ) as process:
        os.close(slave)
        written = io.BytesIO()
        while True:
            try:
                piece = os.read(master, 4096)
            except OSError:
                break
            written.write(piece)
        assert process.wait(20) == 0, written.getvalue()
    os.close(master)
    return written.getvalue().decode()
