"""`vinfer doctor`: what this installation and this machine have, and what is missing. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vinfer.engine.loading.code_store import check_trust
from vinfer.errors import DeviceError
from vinfer.launch.device_kinds import missing_packages
from vinfer.launch.devices import find_target
from vinfer.launch.kv_memory import process_memory_bytes
from vinfer.version import __version__

_PACKAGES = ("jax", "jaxlib", "easydel", "transformers", "torch", "libtpu", "jax-cuda12-pjrt")
_HUB = "https://huggingface.co"
_HUB_SECONDS = 5.0


def examine(cache_dir: Path, *, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return what is here, as plain data; null where a package is not installed or a fact is not known."""
    return {
        "vinfer": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "can_build": _version("easydel") is not None,
        "devices": _devices(),
        "cache_dir": _cache(cache_dir),
        # What must be installed to compile for devices that are not here.
        "missing_compilers": {"tpu": missing_packages("tpu"), "cuda": missing_packages("cuda")},
        "hub": _hub(environ),
        "hub_token": bool(environ.get("HF_TOKEN")),
    }


def require_device(found: Mapping[str, Any]) -> None:
    """Raise if JAX finds no device.

    Raises:
        DeviceError: what JAX says.
    """
    if problem := found["devices"].get("problem"):
        raise DeviceError(problem)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    try:
        target = find_target(None)
    except DeviceError as error:
        return {"problem": error.message}
    return {
        "platform": target.platform,
        "kind": target.kinds[0],
        "count": target.num_devices,
        "memory_bytes": process_memory_bytes(target.platform, target.memory_bytes),
    }


def _cache(directory: Path) -> dict[str, Any]:
    """Return whether a cache can be written, and whether its machine code would be trusted."""
    place = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    problem = None
    if not os.access(place, os.W_OK):
        problem = f"{place} cannot be written: every start builds or compiles anew"
    elif directory.exists():
        try:
            check_trust(directory)
        except PermissionError as error:
            problem = f"machine code is not used: {error}"
    return {
        "path": str(directory),
        "exists": directory.exists(),
        "free_bytes": shutil.disk_usage(place).free,
        "problem": problem,
    }


def _hub(environ: Mapping[str, str]) -> str:
    if environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        return "not used: HF_HUB_OFFLINE is set"
    address = urlsplit(environ.get("HF_ENDPOINT") or _HUB)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_HUB_SECONDS).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached ({error}); checkpoints in directories still work"
    return f"{address.hostname} can be reached"
