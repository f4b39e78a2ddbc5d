"""Puts the leader of a group together, from the config and the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vinfer.config import Config, load_source
from vinfer.errors import ConfigError
from vinfer.hosts.membership import Membership, find_membership

if TYPE_CHECKING:
    from vinfer.hosts.leader import Leader


def load_to_serve(source: Path, *, overrides: Sequence[str], environ: Mapping[str, str]) -> Config:
    """Load a config as `load_source` does; in a group, a step may not take longer than a dispatch there.

    Raises:
        ConfigError: see `load_source` and `group_membership`.
    """
    config = load_source(source, overrides=overrides, environ=environ)
    if group_membership(config, environ) is None:
        return config
    server = config.server
    limit = min(server.step_timeout_seconds, server.distributed.stall_seconds)
    return config.model_copy(update={"server": server.model_copy(update={"step_timeout_seconds": limit})})


def group_membership(config: Config, environ: Mapping[str, str]) -> Membership | None:
    """Return this process's place in its group; None if it serves alone.

    Raises:
        ConfigError: see `find_membership`; or the config asks for what a group does not do.
    """
    membership = find_membership(config.server.distributed, environ)
    optional = [position for position, model in enumerate(config.models) if not model.required]
    if membership is not None and optional:
        raise ConfigError(
            f"models[{optional[0]}].required is false, but a group ends with any of its models: leave the "
            "key out, or serve the model by itself"
        )
    return membership


def refuse_group(config: Config, environ: Mapping[str, str], *, what: str) -> None:
    """Refuse a config whose models are spread over a group.

    Args:
        what: whatever runs in one process.

    Raises:
        ConfigError: this process would be a member of a group.
    """
    if group_membership(config, environ) is not None:
        raise ConfigError(
            f"{what} runs in one process, but server.distributed makes it a member of a group: use vinfer "
            "serve, or set server.distributed.num_processes to 1"
        )


def start_leader(config: Config, membership: Membership | None) -> Leader | None:
    """Listen for followers; None if this process serves alone.

    Raises:
        ConfigError, BindError: see `Leader`.
    """
    if membership is None:
        return None
    # Imported here: whoever serves alone needs no ZeroMQ.
    from vinfer.hosts.leader import Leader

    return Leader(membership, config.server.distributed)
