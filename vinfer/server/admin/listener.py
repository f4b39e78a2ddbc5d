"""The Unix socket of the admin routes: only this user may connect to it, from the moment that it exists.

Event loop; one HTTP server more, with neither TCP nor API keys.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from vinfer.errors import BindError
from vinfer.server.http.uvicorn_protocol import LimitedHttpProtocol

_BACKLOG = 16
_SOCKET_MODE = 0o600
_MAX_PATH_BYTES = 90
"""Of the 107 that the system allows; the rest is for the name while it is bound."""
_TIMEOUT_SECONDS = 10.0


def bind_admin(path: Path) -> socket.socket:
    """Bind a listening Unix socket of mode 0600; one that a dead server left behind is replaced.

    Raises:
        BindError: another server listens there, something else is there, or the directory does not allow it.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise BindError(f"server.admin_socket is longer than {_MAX_PATH_BYTES} bytes: choose a shorter path")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _require_unused(path)
        # In a directory of this user's own, so that nobody can connect before the mode is set.
        with tempfile.TemporaryDirectory(prefix=".admin-", dir=path.parent) as scratch:
            bound = Path(scratch, "s")
            sock.bind(str(bound))
            bound.chmod(_SOCKET_MODE)
            sock.listen(_BACKLOG)
            bound.rename(path)
    except OSError as error:
        sock.close()
        reason = error.strerror or str(error)
        raise BindError(
            f"server.admin_socket is {path}: {reason}: choose a directory that this user may write to"
        ) from None
    except BindError:
        sock.close()
        raise
    return sock


def _require_unused(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BindError(
            f"server.admin_socket is {path}, which is no socket: remove it or choose another path"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return
    raise BindError(f"server.admin_socket is {path}, where another server listens: choose another path")


class AdminListener:
    """Serves the admin routes while the server runs.

    Args:
        app: from `admin_app`.
        path: `server.admin_socket`.
        sock: from `bind_admin`.
    """

    def __init__(self, app: Starlette, path: Path, sock: socket.socket) -> None:
        self._config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", lifespan="off")
        self._path = path
        self._sock = sock
        self._state = ServerState()
        self._server: asyncio.AbstractServer | None = None

    async def start(self) -> None:
        """Accept connections, on the running event loop."""
        self._config.load()
        protocol: Any = functools.partial(
            LimitedHttpProtocol,
            receive_timeout_seconds=_TIMEOUT_SECONDS,
            config=self._config,
            server_state=self._state,
            app_state={},
        )
        self._server = await asyncio.get_running_loop().create_unix_server(protocol, sock=self._sock)

    async def stop(self) -> None:
        """Close the socket and its connections, and remove it."""
        if self._server is None:
            return
        self._server.close()
        self._path.unlink(missing_ok=True)
        for connection in list(self._state.connections):
            connection.shutdown()
        # Lets the transports close.
        await asyncio.sleep(0)
