"""A server process of a config on a free loopback port, for a command that talks to it and ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vinfer.chat.client import Readiness
from vinfer.child_process import PYTHON, end_with_parent, how_it_ended
from vinfer.errors import AnswerError

_POLL_SECONDS = 0.2
_STOP_SECONDS = 20.0
_MAX_LOG_LINES = 5


@contextlib.contextmanager
def serving(
    source: Path, *, readiness: Callable[[str], Readiness | None], progress: Callable[[str], None]
) -> Iterator[str]:
    """Serve a config or a bundle, and yield the URL once it is ready; end the server afterwards.

    It listens on loopback only and takes no API keys, whatever the config says.

    Args:
        readiness: returns what the server at a URL does, or None while it does not answer.
        progress: receives each phase once.

    Raises:
        AnswerError: the server ends before it is ready; the message has the end of its log.
    """
    url = f"http://127.0.0.1:{(port := _free_port())}"
    # Neither keys nor the admin socket, where the real server may listen.
    changes = ["server.api_keys_file=null", "server.admin_socket=null"]
    options = ["--host", "127.0.0.1", "--port", str(port), *(f"--set={change}" for change in changes)]
    command = [*PYTHON, "-m", "vinfer", "serve", str(source), *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(  # noqa: S603 - this interpreter and our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for the answer, not for the server.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            last = None
            while (current := readiness(url)) is None or current.phase != "ready":
                if process.poll() is not None:
                    log.seek(0)
                    lines = "\n".join(log.read().splitlines()[-_MAX_LOG_LINES:])
                    raise AnswerError(f"the server ended with {how_it_ended(process.returncode)}:\n{lines}")
                if current is not None and current.phase != last:
                    last = current.phase
                    progress(str(current))
                time.sleep(_POLL_SECONDS)
            yield url
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    # The second one does not wait for answers.
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS / 2)
            return
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port
