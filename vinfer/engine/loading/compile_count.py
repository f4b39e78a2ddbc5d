"""Counts compiles, process-wide, to prove that none happens after a server is ready."""

from __future__ import annotations

from jax import monitoring

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Counts XLA compiles, and separately those after `mark_ready`.

    Any thread. One per process, because JAX's listeners cannot be removed individually.
    """

    def __init__(self) -> None:
        self.num_compiles = 0
        self._num_at_ready: int | None = None
        monitoring.register_event_duration_secs_listener(self._on_duration)

    def mark_ready(self) -> None:
        """Count every compile from now on as post-ready."""
        self._num_at_ready = self.num_compiles

    @property
    def num_post_ready(self) -> int:
        return 0 if self._num_at_ready is None else self.num_compiles - self._num_at_ready

    def _on_duration(self, event: str, duration_secs: float, **_: object) -> None:
        if event == _COMPILE_EVENT:
            self.num_compiles += 1
