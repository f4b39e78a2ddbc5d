"""Runs a command in a pseudo-terminal, types into it, and keeps the screens that a viewer would see."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from recording.screen import Cell, Screen

# A screen that lasts less is skipped, and what lasts longer is shortened. One that never rests is sampled.
_SETTLED_SECONDS = 0.4
_MAX_SECONDS = 2.0
_SAMPLE_SECONDS = 3.0
_ROWS = 28


@dataclasses.dataclass(frozen=True)
class Step:
    """Wait for a pattern in what is new on the screen, then type a text; without one, end the command."""

    wait_for: str
    type: str | None = None


@dataclasses.dataclass(frozen=True)
class Frame:
    """One screen, and how long it lasts."""

    rows: tuple[tuple[Cell, ...], ...]
    seconds: float


def record(
    command: Sequence[str],
    steps: Sequence[Step],
    *,
    shown: str,
    columns: int,
    cwd: Path,
    environment: Mapping[str, str],
    timeout_seconds: float,
) -> list[Frame]:
    """Run a command and return its frames.

    Args:
        shown: the command as the viewer sees it typed.

    Raises:
        TimeoutError: a pattern did not appear.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
    screen = Screen(columns)
    screen.write(f"$ {shown}\r\n")
    frames = [Frame(_last_rows(screen), _MAX_SECONDS / 2)]
    settings = {"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": str(_ROWS)}
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env={**os.environ, **settings, **environment},
        start_new_session=True,
    )
    os.close(slave)
    try:
        _follow(process, master, screen, frames, list(steps), time.monotonic() + timeout_seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        os.close(master)
    return [*frames, Frame(_last_rows(screen), 2 * _MAX_SECONDS)]


def _follow(
    process: subprocess.Popen[bytes],
    master: int,
    screen: Screen,
    frames: list[Frame],
    steps: list[Step],
    until: float,
) -> None:
    """Read until the command has ended, or until a step ends it."""
    new, changed = "", time.monotonic()
    shown = changed
    while time.monotonic() < until:
        ready, _, _ = select.select([master], [], [], _SETTLED_SECONDS)
        now = time.monotonic()
        if ready:
            try:
                piece = os.read(master, 65536).decode(errors="replace")
            except OSError:
                return
            if now - changed >= _SETTLED_SECONDS:
                frames.append(Frame(_last_rows(screen), min(now - changed, _MAX_SECONDS)))
                shown = now
            elif now - shown >= _SAMPLE_SECONDS:
                frames.append(Frame(_last_rows(screen), _SETTLED_SECONDS))
                shown = now
            changed = now
            screen.write(piece)
            new += piece
            continue
        if steps and (match := re.search(steps[0].wait_for, new)):
            step = steps.pop(0)
            new = new[match.end() :]
            if step.type is None:
                return
            os.write(master, step.type.encode())
        elif process.poll() is not None:
            return
    raise TimeoutError(f"{steps[0].wait_for if steps else 'the end'} did not come:\n{screen.text}")


def _last_rows(screen: Screen) -> tuple[tuple[Cell, ...], ...]:
    return tuple(screen.rows[-_ROWS:])
