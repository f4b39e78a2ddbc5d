"""What the child processes of vinfer have in common: they end with their parent, and their end has words.

Linux does the first; elsewhere a child ends when it next reads from its parent. Imports nothing of vinfer.
"""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ask the kernel to end this process when the thread that started it ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def how_it_ended(returncode: int) -> str:
    """Say in words how a child ended; `returncode` as `subprocess` has it, negative for a signal."""
    return f"signal {-returncode} (out of memory?)" if returncode < 0 else f"exit code {returncode}"
