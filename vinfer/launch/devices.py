"""Which devices a command uses: `--devices`, what JAX finds here, and how much memory they have.

The only place that initializes JAX for the server; runs on the loader thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vinfer.bundle.manifest import Platform
from vinfer.errors import ConfigError, DeviceError

if TYPE_CHECKING:
    import jax

_PLATFORMS: dict[str, Platform] = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}


def target_devices(devices: str | None) -> tuple[Platform, int] | None:
    """Parse `--devices PLATFORM:COUNT`, such as `tpu:8` or `cpu:4`.

    Raises:
        ConfigError: another form, an unknown platform, or a count that is not positive.
    """
    if devices is None:
        return None
    name, _, count = devices.partition(":")
    if name not in _PLATFORMS or not count.isascii() or not count.isdigit() or int(count) < 1:
        raise ConfigError(
            f"--devices is {devices}: write PLATFORM:COUNT with one of {', '.join(_PLATFORMS)}, such as tpu:8"
        )
    return _PLATFORMS[name], int(count)


def local_devices(wanted: tuple[Platform, int] | None) -> tuple[Platform, Sequence[jax.Device]]:
    """Initialize JAX and return this process's platform and devices.

    Args:
        wanted: a CPU count makes the CPU look like that many devices, to try a mesh without accelerators.

    Raises:
        DeviceError: JAX finds no usable device, or another platform than the wanted one.
    """
    import jax

    if wanted is not None and wanted[0] == "cpu":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", wanted[1])
    try:
        found = jax.local_devices()
    except RuntimeError as error:
        raise DeviceError(f"JAX finds no device: {error}") from None
    platform = _PLATFORMS.get(found[0].platform)
    if platform is None:
        raise DeviceError(f"JAX runs on {found[0].platform}; vinfer supports {', '.join(_PLATFORMS)}")
    if wanted is not None and wanted[0] != platform:
        raise DeviceError(f"--devices asks for {wanted[0]}, JAX found {platform} on this machine")
    if wanted is not None and wanted[1] > len(found):
        raise DeviceError(f"--devices asks for {wanted[1]} devices, JAX found {len(found)}")
    return platform, found[: wanted[1]] if wanted else found


def device_memory_bytes(device: jax.Device) -> int | None:
    """Return the memory of one device, or None if it does not report it; for a CPU the machine's memory."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else int(limit)
