"""The group as JAX knows it: `jax.distributed`, its key-value store and its barriers.

The only place that initializes it. The store's client is private to JAX: another minor version of JAX, which
pyproject.toml rules out, needs this file checked. Nobody may let the interpreter end afterwards, because JAX
would wait for all members at exit.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed

from vinfer.errors import DeviceError
from vinfer.hosts.membership import Membership

_PREFIX = "vinfer"
# Between two looks, other threads of this process get their turn, and notice deaths.
_WAIT_MILLISECONDS = 2000
# JAX aborts after about two thirds of its limit; by then this process has ended in its own way.
_HEARTBEATS = 4
_DEADLINE = "DEADLINE_EXCEEDED"


class ProcessGroup:
    """The members that have joined.

    Args:
        heartbeat_seconds: of the stream; JAX's own are a second line, and abort the process.
        join_seconds: how long to wait for the others.
    """

    def __init__(self, membership: Membership, *, heartbeat_seconds: int, join_seconds: float) -> None:
        """Join.

        Raises:
            DeviceError: not all members came in time.
        """
        self._membership = membership
        # JAX ends a process by an abort if it notices a death first, which must not fill the disk.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        # It would take SIGTERM away from the server.
        jax.config.update("jax_enable_preemption_service", False)
        host = f"[{membership.leader}]" if ":" in membership.leader else membership.leader
        address = f"{host}:{membership.port}"
        try:
            jax.distributed.initialize(
                address,
                membership.num_processes,
                membership.process_id,
                cluster_detection_method="deactivate",
                initialization_timeout=max(int(join_seconds), 1),
                heartbeat_timeout_seconds=_HEARTBEATS * heartbeat_seconds,
                shutdown_timeout_seconds=heartbeat_seconds,
                coordinator_bind_address=address if membership.is_on_one_machine else None,
            )
        except RuntimeError as error:
            raise DeviceError(
                f"the group of {membership.num_processes} did not come together at {address} within "
                f"{join_seconds:g} s ({str(error).splitlines()[0]}): start all members, and let them reach "
                "the leader's port, or raise server.distributed.join_seconds"
            ) from None
        self._client: Any = distributed.global_state.client

    def tell(self, name: str, facts: Mapping[str, Any]) -> None:
        """Publish something about this member."""
        self._client.key_value_set(self._key(self._membership.process_id, name), json.dumps(facts))

    def told(self, process_id: int, name: str) -> dict[str, Any]:
        """Wait for what a member publishes; it may take long, if the leader builds a bundle."""
        while True:
            try:
                text = self._client.blocking_key_value_get(self._key(process_id, name), _WAIT_MILLISECONDS)
            except jax.errors.JaxRuntimeError as error:
                if _DEADLINE not in str(error):
                    raise
                continue
            facts: dict[str, Any] = json.loads(text)
            return facts

    def meet(self, name: str, seconds: float) -> None:
        """Wait until all members are here.

        Raises:
            DeviceError: one of them did not come.
        """
        try:
            self._client.wait_at_barrier(f"{_PREFIX}/{name}", int(seconds * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise DeviceError(
                f"not all members got as far as {name} within {seconds:g} s "
                f"({str(error).splitlines()[0]}): look at the logs of the others"
            ) from None

    @staticmethod
    def _key(process_id: int, name: str) -> str:
        return f"{_PREFIX}/{process_id}/{name}"
