"""What the members of a group must have in common before any of them reads weights. Pure functions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vinfer.bundle.manifest import Manifest
from vinfer.errors import BundleError
from vinfer.version import __version__

Facts = Mapping[str, Any]


def group_facts(num_processes: int, model_names: Sequence[str]) -> dict[str, Any]:
    """Return what holds for all models."""
    return {
        "vinfer": __version__,
        "server.distributed.num_processes": num_processes,
        "models": list(model_names),
    }


def bundle_facts(manifest: Manifest) -> dict[str, Any]:
    """Return what makes two bundles the same: the key, and the hashes of all files."""
    files = json.dumps(dict(sorted(manifest.files.items())))
    return {"bundle": manifest.key, "files": hashlib.sha256(files.encode()).hexdigest()}


def check_same(leader: Facts, member: Facts, process_id: int, what: str) -> None:
    """Check that a member has what the leader has.

    Args:
        what: such as `model llama`, for the message.

    Raises:
        BundleError: names the first fact that differs, with both values.
    """
    if "missing" in member:
        raise BundleError(f"member {process_id}, {what}: {member['missing']}")
    for name, value in leader.items():
        if member.get(name) != value:
            raise BundleError(
                f"{what}: {name} is {_short(member.get(name))} on member {process_id} and {_short(value)} on "
                "the leader: give all members the same vinfer, config and bundle"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
