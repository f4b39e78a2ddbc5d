"""What every thread and every task of the event loop is doing now, as text."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import traceback


def thread_stacks() -> str:
    """Return the stacks of all threads, by name. It holds source lines, but no values."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = [
        f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    ]
    return "\n".join(parts)


def task_stacks() -> str:
    """Return where each task of the running event loop waits."""
    parts = []
    for task in asyncio.all_tasks():
        text = io.StringIO()
        task.print_stack(file=text)
        parts.append(text.getvalue())
    return "\n".join(parts)
