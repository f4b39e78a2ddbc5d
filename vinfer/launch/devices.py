"""Which devices a command uses: `--devices`, what JAX finds here, and how much memory they have.

The only place that initializes JAX for the server; runs on the loader thread.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vinfer.bundle.manifest import Platform
from vinfer.errors import ConfigError, DeviceError
from vinfer.launch.device_kinds import KINDS, may_be_here

if TYPE_CHECKING:
    import jax

_NEXT_MOVE = ": leave --devices out to use what is here; vinfer doctor shows what is missing"

_PLATFORMS: dict[str, Platform] = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}


@dataclasses.dataclass(frozen=True, slots=True)
class WantedDevices:
    """Parsed `--devices`; `kind` is a name in `KINDS` or None."""

    platform: Platform
    count: int
    kind: str | None = None

    def __str__(self) -> str:
        return f"{self.platform}{'' if self.kind is None else f'-{self.kind}'}:{self.count}"


def target_devices(devices: str | None) -> WantedDevices | None:
    """Parse `--devices PLATFORM[-KIND]:COUNT`, such as `tpu:8`, `tpu-v5e:4` or `cpu:4`.

    Raises:
        ConfigError: another form, an unknown platform or kind, or a count that is not positive.
    """
    if devices is None:
        return None
    name, _, count = devices.partition(":")
    platform, has_kind, kind = name.partition("-")
    if platform not in _PLATFORMS or not count.isascii() or not count.isdigit() or int(count) < 1:
        raise ConfigError(
            f"--devices is {devices}: write PLATFORM:COUNT with one of {', '.join(_PLATFORMS)}, "
            "such as tpu:8; "
            "for one kind of device PLATFORM-KIND:COUNT, such as tpu-v5e:4"
        )
    wanted = WantedDevices(_PLATFORMS[platform], int(count), kind if has_kind else None)
    if wanted.kind is not None and (kind not in KINDS or KINDS[kind].platform != wanted.platform):
        known = [f"{facts.platform}-{name}" for name, facts in KINDS.items()]
        raise ConfigError(f"--devices is {devices}: the kinds of devices are {', '.join(known)}")
    return wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What bundles are for.

    Attributes:
        devices: devices of this machine; empty if it lacks them.
        kinds: JAX's names of the kind of device, in lower case; empty if only the platform is known.
        memory_bytes: memory of one device, if known.
    """

    platform: Platform
    num_devices: int
    devices: Sequence[jax.Device] = ()
    kinds: tuple[str, ...] = ()
    memory_bytes: int | None = None

    @property
    def is_here(self) -> bool:
        return bool(self.devices)


def find_target(wanted: WantedDevices | None) -> Target:
    """Initialize JAX and return the devices of this machine, or what is known of the wanted ones.

    Raises:
        DeviceError: none are named, and JAX finds no usable device.
    """
    if wanted is not None and wanted.kind is not None and not may_be_here(wanted.platform):
        # Before JAX starts: it would try each platform that is installed, and fail loudly.
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        return local_devices(wanted)
    except DeviceError:
        if wanted is None:
            raise
        return described_target(wanted)


def planned_target(wanted: WantedDevices | None) -> Target:
    """Return the devices to plan for: a kind need not be here, and is not looked for.

    Raises:
        DeviceError: see `find_target`.
    """
    if wanted is not None and wanted.kind is not None:
        return described_target(wanted)
    return find_target(wanted)


def described_target(wanted: WantedDevices) -> Target:
    """Return what is known of devices by their name, without a look at this machine."""
    if wanted.kind is None:
        return Target(platform=wanted.platform, num_devices=wanted.count)
    facts = KINDS[wanted.kind]
    return Target(
        platform=wanted.platform,
        num_devices=wanted.count,
        kinds=facts.names,
        memory_bytes=facts.memory_bytes,
    )


def local_devices(wanted: WantedDevices | None) -> Target:
    """Initialize JAX and return this process's devices.

    Args:
        wanted: a CPU count makes the CPU look like that many devices, to try a mesh without accelerators.

    Raises:
        DeviceError: JAX finds no usable device, or another platform or kind than the wanted one.
    """
    import jax

    if wanted is not None and wanted.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", wanted.count)
    try:
        found = jax.local_devices()
    except RuntimeError as error:
        raise DeviceError(f"JAX finds no device: {error}: vinfer doctor shows what is missing") from None
    platform = _PLATFORMS.get(found[0].platform)
    if platform is None:
        raise DeviceError(f"JAX runs on {found[0].platform}; vinfer supports {', '.join(_PLATFORMS)}")
    if wanted is None:
        return _here(platform, found)
    kind = found[0].device_kind
    if wanted.platform != platform:
        raise DeviceError(f"--devices asks for {wanted}, JAX found {platform} on this machine{_NEXT_MOVE}")
    if wanted.kind is not None and kind.lower() not in KINDS[wanted.kind].names:
        raise DeviceError(f"--devices asks for {wanted}, JAX found {kind} on this machine{_NEXT_MOVE}")
    if wanted.count > len(found):
        raise DeviceError(f"--devices asks for {wanted.count} devices, JAX found {len(found)}{_NEXT_MOVE}")
    return _here(platform, found[: wanted.count])


def _here(platform: Platform, devices: Sequence[jax.Device]) -> Target:
    return Target(
        platform=platform,
        num_devices=len(devices),
        devices=devices,
        kinds=(devices[0].device_kind.lower(),),
        memory_bytes=device_memory_bytes(devices[0]),
    )


def group_devices(wanted: WantedDevices | None) -> Target:
    """Return the devices of all members of a group, which must be together by now.

    Args:
        wanted: each member's own; it must be all that it has.

    Raises:
        DeviceError: see `local_devices`.
    """
    import jax

    own = local_devices(wanted)
    if own.num_devices < jax.local_device_count():
        raise DeviceError(
            f"--devices asks for {own.num_devices} devices, JAX found {jax.local_device_count()}: a member "
            "of a group uses all of its devices, so leave --devices out"
        )
    return _here(own.platform, jax.devices())


def device_memory_bytes(device: jax.Device) -> int | None:
    """Return the memory of one device, or None if it does not report it; for a CPU the machine's memory."""
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else int(limit)
