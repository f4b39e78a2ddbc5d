"""Puts the admin listener together: what its routes do with the terminal's log and with JAX."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from vinfer.errors import EngineError
from vinfer.launch.terminal import set_log_level
from vinfer.server.admin.app import AdminActions, admin_app
from vinfer.server.admin.listener import AdminListener, bind_admin
from vinfer.server.services import Services


def admin_listener(services: Services) -> AdminListener | None:
    """Bind `server.admin_socket`, and return what serves it; None without one.

    Raises:
        BindError: see `bind_admin`.
    """
    config = services.config
    if config.admin_socket is None:
        return None
    profile = None if config.profile_dir is None else profiler(config.profile_dir)
    app = admin_app(services, AdminActions(set_log_level=set_log_level, profile=profile))
    return AdminListener(app, config.admin_socket, bind_admin(config.admin_socket))


def profiler(directory: Path) -> Callable[[float], str]:
    """Return what runs JAX's profiler for some seconds, on the calling thread, and returns what it wrote.

    Args:
        directory: `server.profile_dir`; made with mode 0700 if it is missing.
    """

    def profile(seconds: float) -> str:
        import jax

        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            jax.profiler.start_trace(str(directory))
            try:
                time.sleep(seconds)
            finally:
                jax.profiler.stop_trace()
            return str(max((directory / "plugins" / "profile").iterdir()))
        except (OSError, RuntimeError) as error:
            raise EngineError(f"the profile failed: {error}") from None

    return profile
