"""Modules of vinfer that run in a process of their own, and what passes between such a child and its parent.

The parent writes one JSON document per line to the child's standard input. The child answers likewise on a
pipe of its own, because libraries print to standard output and error. A child ends with its parent: Linux
ends it at once, elsewhere it ends when it next reads. Imports only the errors from vinfer.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from vinfer.errors import CheckpointError, VinferError

_PR_SET_PDEATHSIG = 1
PYTHON = (sys.executable, "-P")
"""This interpreter. It imports nothing from the directory that a command happens to run in."""


class Say(Protocol):
    """Sends a document to the parent."""

    def __call__(self, **message: object) -> None: ...


class Child:
    """The parent's side of a child that is running."""

    def __init__(self, process: subprocess.Popen[str], events: IO[str], failure: type[VinferError]) -> None:
        self._process = process
        self._events = events
        self._failure = failure

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a document; a child that has already ended does not get it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def receive(self) -> dict[str, Any] | None:
        """Return the child's next document; None once it has ended.

        Raises:
            CheckpointError: the child refuses the checkpoint.
            VinferError: of the class that `running_child` was given: anything else went wrong in it.
        """
        line = self._events.readline()
        if not line:
            return None
        message: dict[str, Any] = json.loads(line)
        if "error" in message:
            raise (CheckpointError if message["is_checkpoint"] else self._failure)(message["error"])
        return message

    def end(self) -> str:
        """Wait for the child and return how it ended; empty if it ended well."""
        returncode = self._process.wait()
        return how_it_ended(returncode) if returncode else ""


@contextlib.contextmanager
def running_child(
    module: str, *, environment: Mapping[str, str], log: Path, failure: type[VinferError]
) -> Iterator[Child]:
    """Run a module that calls `child_main`; it has ended when the context exits.

    Args:
        log: receives all output of the child and its libraries.
        failure: what `receive` raises for errors of the child.
    """
    events_fd, child_fd = os.pipe()
    with (
        os.fdopen(events_fd) as events,
        log.open("w") as output,
        subprocess.Popen(  # noqa: S603 - this interpreter and our own module
            [*PYTHON, "-m", module, str(child_fd)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            env=dict(environment),
            pass_fds=(child_fd,),
        ) as process,
    ):
        os.close(child_fd)
        try:
            yield Child(process, events, failure)
        except BaseException:
            process.kill()
            raise
        finally:
            assert process.stdin is not None
            # What a child that has ended was not sent is written again here.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def child_main(work: Callable[[Say], None], *, failure: type[VinferError], what: str = "") -> int:
    """Run a child's work; report how it fails and return the exit code.

    Args:
        failure: decides the exit code of errors that are not ours.
        what: comes before such an error.
    """
    end_with_parent()
    events_fd = int(sys.argv[1])
    # Programs that libraries start must not hold the pipe open.
    os.set_inheritable(events_fd, False)
    events = os.fdopen(events_fd, "w", buffering=1)

    def say(**message: object) -> None:
        events.write(json.dumps(message) + "\n")

    try:
        work(say)
    except VinferError as error:
        say(error=error.message, is_checkpoint=isinstance(error, CheckpointError))
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the parent shows one line; the log has the rest
        traceback.print_exc()
        say(error=f"{what}{type(error).__name__}: {error}", is_checkpoint=False)
        return failure.exit_code
    return 0


def end_with_parent() -> None:
    """Ask the kernel to end this process when the thread that started it ends, for whatever reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def how_it_ended(returncode: int) -> str:
    """Describe how a child ended; `returncode` is as in `subprocess`, negative for a signal."""
    return f"signal {-returncode} (out of memory?)" if returncode < 0 else f"exit code {returncode}"
