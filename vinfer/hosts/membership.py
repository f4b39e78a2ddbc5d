"""Which member of a group this process is, from the config and the variables that launchers set.

Pure functions. JAX has a detection of its own, which is off: it guesses ports, and asks the network.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from vinfer.config import DistributedConfig
from vinfer.errors import ConfigError

COORDINATOR_PORT = 8482
"""JAX's coordinator; 8476 is the TPU runtime's own."""
_KEY = "server.distributed"
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """One member of a group; the leader is process 0.

    Attributes:
        leader: host of the leader.
        port: of JAX's coordinator there.
    """

    leader: str
    port: int = COORDINATOR_PORT
    num_processes: int
    process_id: int

    @property
    def is_leader(self) -> bool:
        return self.process_id == 0

    @property
    def is_on_one_machine(self) -> bool:
        """Whether the leader is named by a loopback address, so that nobody else need reach it."""
        return self.leader in _LOOPBACK


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    leader: str
    num_processes: int
    process_id: int


def find_membership(config: DistributedConfig, environ: Mapping[str, str]) -> Membership | None:
    """Return this process's place in its group; None if it serves alone.

    Args:
        config: its keys win over the environment.

    Raises:
        ConfigError: something is missing, or contradicts the rest.
    """
    found = _detected(config, environ)
    coordinator = config.coordinator or (found.leader if found else None)
    num_processes = _first(config.num_processes, found.num_processes if found else None)
    process_id = _first(config.process_id, found.process_id if found else None)
    stated = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if all(value is None for value in stated.values()) or num_processes == 1:
        return None
    for key, value in stated.items():
        if value is None:
            raise ConfigError(
                f"{_KEY}.{key} is not set, and {_KEY}.detect is {config.detect}, which does not find it: set "
                "it on every member"
            )
    assert coordinator is not None
    assert num_processes is not None
    assert process_id is not None
    if process_id >= num_processes:
        raise ConfigError(
            f"{_KEY}.process_id is {process_id}; with {_KEY}.num_processes {num_processes} the last one is "
            f"{num_processes - 1}: number the members from 0, the leader's number"
        )
    if config.secret_file is None:
        raise ConfigError(
            f"{_KEY}.secret_file is not set: the members of a group need a secret, the same on all of them, "
            "such as 64 hex digits of `openssl rand -hex 32`"
        )
    host, port = _host_and_port(coordinator)
    return Membership(leader=host, port=port, num_processes=num_processes, process_id=process_id)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _host_and_port(coordinator: str) -> tuple[str, int]:
    """Split `HOST`, `HOST:PORT`, `[IPv6]` or `[IPv6]:PORT`."""
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", coordinator)
    plain = re.fullmatch(r"([^:\[\]]+)(?::(\d+))?", coordinator)
    match = bracketed or plain
    if match is None or not 0 < int(match[2] or COORDINATOR_PORT) < 65536:
        raise ConfigError(
            f"{_KEY}.coordinator is {coordinator!r}: write HOST or HOST:PORT of the leader, such as "
            f"vinfer-0.vinfer:{COORDINATOR_PORT}"
        )
    return match[1], int(match[2] or COORDINATOR_PORT)


def _detected(config: DistributedConfig, environ: Mapping[str, str]) -> _Found | None:
    if config.detect == "off":
        return None
    if config.detect != "auto":
        variables, read = _LAUNCHERS[config.detect]
        missing = [name for name in variables if not environ.get(name)]
        if missing:
            raise ConfigError(
                f"{_KEY}.detect is {config.detect}, but {', '.join(missing)} is not set: start vinfer with "
                f"that launcher, or set {_KEY}.coordinator, num_processes and process_id, and detect: off"
            )
        return read(environ)
    for variables, read in _LAUNCHERS.values():
        if all(environ.get(name) for name in variables):
            found = read(environ)
            if found.num_processes > 1:
                return found
    return None


def _of_lws(environ: Mapping[str, str]) -> _Found:
    return _Found(
        environ["LWS_LEADER_ADDRESS"],
        _number(environ, "LWS_GROUP_SIZE"),
        _number(environ, "LWS_WORKER_INDEX"),
    )


def _of_slurm(environ: Mapping[str, str]) -> _Found:
    return _Found(
        _first_node(environ["SLURM_STEP_NODELIST"]),
        _number(environ, "SLURM_STEP_NUM_TASKS"),
        _number(environ, "SLURM_PROCID"),
    )


def _of_tpu(environ: Mapping[str, str]) -> _Found:
    hosts = [host.strip() for host in environ["TPU_WORKER_HOSTNAMES"].split(",") if host.strip()]
    if not hosts:
        raise ConfigError("TPU_WORKER_HOSTNAMES names no host: set it to all hosts of the slice, with commas")
    return _Found(hosts[0], len(hosts), _number(environ, "TPU_WORKER_ID"))


_LAUNCHERS: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, str]], _Found]]] = {
    "lws": (("LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"), _of_lws),
    "slurm": (("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), _of_slurm),
    "tpu": (("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"), _of_tpu),
}


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ[name]
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(f"{name} is {value!r}, which is no number: set it as the launcher does")
    return int(value)


def _first_node(nodes: str) -> str:
    """Return the first name of a Slurm node list, such as `a[07-09,12],b3`."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^\[,]*)", nodes)
    if match is None:
        raise ConfigError(f"SLURM_STEP_NODELIST is {nodes!r}, which names no node: set it as Slurm does")
    return f"{match[1]}{match[2] or ''}{match[3]}"
