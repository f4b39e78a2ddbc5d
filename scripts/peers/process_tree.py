"""The memory and the CPU time of a server with all of its children, from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SAMPLE_SECONDS = 0.2
_PROC = Path("/proc")


def members(root: int) -> list[int]:
    """List a process and its descendants."""
    parents = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The name, in brackets, may have spaces.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def memory_bytes(pid: int) -> dict[str, int]:
    """Return the memory of one process by kind, such as `Rss` or `Pss`; nothing if it has ended."""
    try:
        rollup = (_PROC / f"{pid}" / "smaps_rollup").read_text()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup.splitlines()[1:]}


def pss_bytes(root: int) -> int:
    """Return the proportional set size of a process tree: a page that several share counts once."""
    return sum(memory_bytes(pid).get("Pss", 0) for pid in members(root))


def cpu_seconds(root: int) -> float:
    """Return the CPU time that a process tree has used."""
    ticks = 0
    for pid in members(root):
        with contextlib.suppress(OSError):
            fields = (_PROC / f"{pid}" / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def sampling(sample: Callable[[], None], every_seconds: float = SAMPLE_SECONDS) -> Iterator[None]:
    """Take samples from a thread; each costs the sampled process up to a few milliseconds."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            sample()
            stop.wait(every_seconds)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


class Peak:
    """The highest PSS of a process tree while it was sampled."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def sample(self, root: int) -> None:
        self.num_bytes = max(self.num_bytes, pss_bytes(root))

    def sampling(self, root: int) -> contextlib.AbstractContextManager[None]:
        return sampling(lambda: self.sample(root))


def idle_cpu_fraction(root: int, seconds: float) -> float:
    """Return the share of one core that an idle server uses."""
    before = cpu_seconds(root)
    time.sleep(seconds)
    return (cpu_seconds(root) - before) / seconds
