"""What vinfer's child processes share: they end with their parent, and their exit is described in words.

Only Linux can end a child at once; elsewhere it ends when it next reads from its parent. Imports nothing else
from vinfer.
"""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Ask the kernel to end this process when the thread that started it ends, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def how_it_ended(returncode: int) -> str:
    """Describe how a child ended; `returncode` is as in `subprocess`, negative for a signal."""
    return f"signal {-returncode} (out of memory?)" if returncode < 0 else f"exit code {returncode}"
