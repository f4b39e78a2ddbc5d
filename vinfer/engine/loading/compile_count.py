"""Counts compiles, process-wide, to prove that no request waits for one."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

from jax import monitoring

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_is_loading = contextvars.ContextVar("is_loading", default=False)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Do not count the compiles inside as post-ready: a model is loaded, perhaps while others serve.

    It holds for the current context; a thread that takes part needs a copy of it.
    """
    token = _is_loading.set(True)
    try:
        yield
    finally:
        _is_loading.reset(token)


class CompileCounter:
    """Counts XLA compiles, and separately those after `mark_ready` that are not `loading` a model.

    Any thread. One per process, because JAX's listeners cannot be removed individually.
    """

    def __init__(self) -> None:
        self.num_compiles = 0
        self.num_post_ready = 0
        self._is_ready = False
        monitoring.register_event_duration_secs_listener(self._on_duration)

    def mark_ready(self) -> None:
        """Count every compile from now on as post-ready, unless it is part of `loading`."""
        self._is_ready = True
        self.num_post_ready = 0

    def _on_duration(self, event: str, duration_secs: float, **_: object) -> None:
        if event != _COMPILE_EVENT:
            return
        self.num_compiles += 1
        if self._is_ready and not _is_loading.get():
            self.num_post_ready += 1
