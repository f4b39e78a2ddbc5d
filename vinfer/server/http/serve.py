"""Binds the port and runs uvicorn until a signal arrives, an engine is lost, or a model fails to load.

Main thread. The port is bound before anything heavy starts, so that a port in use is reported at once and
probes get answers while models load. The first SIGTERM or SIGINT drains the server; the second one stops it.
SIGHUP reloads what can change while serving, SIGUSR1 writes the stacks of all threads to standard error.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.applications import Starlette

from vinfer.config import ServerConfig
from vinfer.errors import BindError, ConfigError, EngineError
from vinfer.server.http.browser import is_loopback
from vinfer.server.http.uvicorn_protocol import uvicorn_config
from vinfer.server.intake import give_memory_back
from vinfer.server.services import Services

logger = logging.getLogger(__name__)

BACKLOG = 2048
# Time between an engine's death and the end of the process, so that probes can see it.
DEAD_ENGINE_SECONDS = 2.0
TICKS_PER_SECOND = 10
# A thread that computes lets another one go on after this time. A probe takes the interpreter several times,
# so that Python's 5 ms would add up beside large bodies.
SWITCH_SECONDS = 0.001
STDERR = 2


class SecondListener(Protocol):
    """Serves something else on the same event loop: `vinfer.server.admin`."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def check_exposure(config: ServerConfig, *, insecure: bool) -> None:
    """Refuse to serve beyond this machine without API keys.

    Raises:
        ConfigError: `server.host` is not a loopback address and there are no keys.
    """
    if config.api_keys_file is not None or insecure or is_loopback(config.host):
        return
    raise ConfigError(
        f"server.host is {config.host} and server.api_keys_file is not set: anyone who can reach this "
        "machine could use it; set server.api_keys_file, or pass --insecure"
    )


def bind(host: str, port: int) -> socket.socket:
    """Bind a listening socket; port 0 means any free one.

    Raises:
        BindError: the address is in use, not ours, or the port is privileged.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        try:
            # Allows a bind over connections that are closing, but not over a live listener.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            # Listen now, so that two servers cannot both hold the port until one of them listens.
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        reason = error.strerror or "unknown address"
        raise BindError(
            f"cannot listen on {host}:{port}: {reason}: stop what uses it or choose another server.port"
        ) from None
    return sock


def run_server(
    app: Starlette,
    config: ServerConfig,
    sock: socket.socket,
    *,
    reload: Callable[[], None] = lambda: None,
    recover: Callable[[str], bool] = lambda name: False,
    lost_group: Callable[[], str | None] = lambda: None,
    admin: SecondListener | None = None,
) -> int:
    """Serve until told to stop, and return the process's exit code.

    The code is 0 after a drain in which every request ended, 1 if the drain had to end some, and 128 + signal
    number if a second signal cut it short. It is the error's own code if a model failed to load, and 1 if an
    engine died or hung and `recover` gave it up.

    Args:
        app: from `create_app`.
        sock: from `bind`; closed when this returns.
        reload: called on the event loop after SIGHUP.
        recover: called on the event loop, at each tick, with the name of a model whose engine is dead;
            returns False if the process must end because of it.
        lost_group: called likewise; returns why the other members of a group are lost, if they are.
        admin: serves the admin routes meanwhile.
    """
    services: Services = app.state.services
    server = _DrainingServer(
        uvicorn_config(app, config, lifespan="on", backlog=BACKLOG, timeout_graceful_shutdown=1),
        services,
        reload,
        recover,
        lost_group,
        admin,
    )
    sys.setswitchinterval(SWITCH_SECONDS)
    server.run(sockets=[sock])
    return server.exit_code


class _DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps listening while it drains, so that probes and clients get a 503."""

    def __init__(
        self,
        config: uvicorn.Config,
        services: Services,
        reload: Callable[[], None],
        recover: Callable[[str], bool],
        lost_group: Callable[[], str | None],
        admin: SecondListener | None,
    ) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._services = services
        self._reload = reload
        self._recover = recover
        self._lost_group = lost_group
        self._has_lost_group = False
        self._admin = admin
        self._last_tick_seconds = time.monotonic()
        self._num_leave_ticks = 0
        self._num_drain_ticks = 0
        self._num_dead_ticks = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, and handle the signals that uvicorn does not know."""
        await super().startup(sockets)
        if self._admin is not None:
            await self._admin.start()
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)
            # Written in C, so it works even if every Python thread hangs.
            faulthandler.register(signal.SIGUSR1, file=STDERR, all_threads=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, and close what is left."""
        if self._admin is not None:
            await self._admin.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, quit on the second. uvicorn's own handler would kill the process."""
        if self._services.models.leaving:
            logger.warning("%s again: quitting now", signal.Signals(sig).name)
            self.exit_code = 128 + sig
            self.should_exit = self.force_exit = True
        else:
            logger.info("%s: draining", signal.Signals(sig).name)
            self._services.models.leave()
            self._drain_if_due()

    async def on_tick(self, counter: int) -> bool:
        """Check whether the server must end; called ten times a second."""
        models = self._services.models
        self._observe_loop()
        self._watch_group()
        self._watch_engines()
        if models.failure is not None:
            self.exit_code = models.failure.exit_code
            self.should_exit = True
        elif models.draining:
            self._drain()
        elif models.leaving:
            self._num_leave_ticks += 1
            self._drain_if_due()
        if self._services.intake.is_trim_due():
            self._services.workers.submit(give_memory_back)
        return await super().on_tick(counter)

    def _observe_loop(self) -> None:
        now = time.monotonic()
        lag_seconds = now - self._last_tick_seconds - 1 / TICKS_PER_SECOND
        self._last_tick_seconds = now
        self._services.metrics.observe_loop(
            lag_seconds,
            num_connections=len(self.server_state.connections),
            preparing_bytes=self._services.intake.num_bytes,
            num_worker_calls=self._services.num_worker_calls,
        )

    def _drain_if_due(self) -> None:
        """Refuse new requests once load balancers have had time to notice; at once if nothing serves yet."""
        models = self._services.models
        if not models.served_models or self._num_leave_ticks >= self._ticks("drain_delay_seconds"):
            models.drain()

    def _watch_group(self) -> None:
        why = None if self._has_lost_group else self._lost_group()
        if why is not None:
            self._has_lost_group = True
            self.exit_code = self.exit_code or 1
            self._services.models.end_all(EngineError(f"the group of hosts has ended: {why}"))

    def _watch_engines(self) -> None:
        models = self._services.models
        limit = self._services.config.step_timeout_seconds
        for name in models.give_up_stuck(limit):
            logger.error(
                "a step of the engine of %s takes longer than server.step_timeout_seconds, %g: giving it up; "
                "the stacks of all threads follow",
                name,
                limit,
            )
            faulthandler.dump_traceback(STDERR, all_threads=True)
        # A drain must not hide it either, and restarts nothing.
        lost = [name for name in models.dead if models.leaving or not self._recover(name)]
        if not lost:
            return
        self.exit_code = self.exit_code or 1
        self._num_dead_ticks += 1
        if self._num_dead_ticks >= DEAD_ENGINE_SECONDS * TICKS_PER_SECOND and not models.draining:
            logger.error("the engine of %s has died: ending the process", ", ".join(lost))
            models.drain()

    def _ticks(self, key: str) -> int:
        return round(float(getattr(self._services.config, key)) * TICKS_PER_SECOND)

    def _drain(self) -> None:
        max_ticks = self._ticks("drain_timeout_seconds")
        if not self.server_state.tasks:
            self.should_exit = True
        elif self._num_drain_ticks == max_ticks:
            logger.warning("drain timeout: ending %d requests", len(self.server_state.tasks))
            self.exit_code = self.exit_code or 1
            self._services.deadlines.expire_all()
        elif self._num_drain_ticks > max_ticks + TICKS_PER_SECOND:
            # Do not wait for clients that do not read their last event.
            self.should_exit = True
        self._num_drain_ticks += 1
