"""The HTTP side of a follower: the routes of probes, and no other; nothing here can reach a model.

Main thread. SIGTERM and SIGINT do not end a follower that has joined its group: it goes on until its leader
has answered the requests that run, and stops. The second one ends it at once.
"""

from __future__ import annotations

import logging
import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from vinfer.config import ServerConfig
from vinfer.server.http.auth import PUBLIC_PATHS
from vinfer.server.http.uvicorn_protocol import uvicorn_config

logger = logging.getLogger(__name__)


class ProbeServer(uvicorn.Server):
    """Answers probes until the process ends.

    Args:
        sock: listening already.
    """

    def __init__(self, config: ServerConfig, sock: socket.socket) -> None:
        routes = [Route(path, self._answer, methods=["GET"]) for path in sorted(PUBLIC_PATHS)]
        super().__init__(uvicorn_config(Starlette(routes=routes), config, lifespan="off"))
        self._sock = sock
        self._phase = "joining"
        self._num_signals = 0
        self.exit_code = 0

    def has_joined(self) -> None:
        """Load models next, and go on after a signal. Any thread."""
        self._phase = "loading"

    def be_ready(self) -> None:
        """Say from now on that the group serves. Any thread."""
        self._phase = "ready"

    def serve_until_end(self) -> int:
        """Answer probes; return the exit code after the signals that end this process."""
        self.run(sockets=[self._sock])
        return self.exit_code

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Go on until the leader stops."""
        self._num_signals += 1
        name = signal.Signals(sig).name
        if self._phase == "joining" or self._num_signals > 1:
            logger.warning("%s: quitting now", name)
            self.exit_code = 128 + sig
            self.should_exit = self.force_exit = True
        else:
            logger.info("%s: following until the leader stops", name)

    async def _answer(self, request: HttpRequest) -> JSONResponse:
        path = request.scope["path"]
        if path == "/liveness":
            return JSONResponse({"status": "alive"})
        is_ready = self._phase == "ready"
        content = (
            {"phase": self._phase} if path == "/readiness" else {"status": "ok" if is_ready else self._phase}
        )
        return JSONResponse(content, 200 if is_ready else 503)
