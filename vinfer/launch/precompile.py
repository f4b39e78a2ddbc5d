"""`vinfer precompile`: does the slow part of a start ahead of deployment.

Builds each bundle, then loads it as the server would, so that any problem shows up here. Stores machine code
in the bundle, and compares a new bundle with transformers. If the target is not this machine, it writes the
bundle, and machine code only for a kind of device that is named.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vinfer.bundle.directory import BUNDLE_CODE, build_lock, is_bundle
from vinfer.bundle.manifest import Platform
from vinfer.config import Config, ModelConfig
from vinfer.errors import ConfigError, DeviceError
from vinfer.launch.bundles import FoundBundle, Progress, find_or_build, open_bundle
from vinfer.launch.device_kinds import KINDS, described_devices, may_be_here
from vinfer.launch.devices import WantedDevices, device_memory_bytes, local_devices
from vinfer.launch.loader import device_pages, start_engine
from vinfer.launch.parity import check_new_bundle

if TYPE_CHECKING:
    import jax

logger = logging.getLogger(__name__)


def precompile(
    config: Config, *, wanted: WantedDevices | None, output: Path | None, progress: Progress
) -> list[Path]:
    """Write and warm up the bundle of every model; return their directories.

    Args:
        wanted: parsed `--devices`; for devices that this machine lacks, bundles are neither warmed up nor
            verified.
        output: the bundle's directory for one model; for several, the parent of a directory per name.

    Raises:
        VinferError: as when the server starts.
    """
    target = _target(wanted)
    directories = []
    for position, model in enumerate(config.models):
        where = f"models[{position}]"
        bundle = find_or_build(
            model,
            where=where,
            platform=target.platform,
            num_devices=target.num_devices,
            bundles_dir=config.bundles_dir,
            progress=progress,
            output=_place(output, model.name, len(config.models)),
            memory_bytes=target.memory_bytes,
            verify_weights=True,
        )
        directories.append(bundle.directory)
        if target.is_here:
            _warm_up(bundle, model, target, progress, where=where)
            continue
        if target.devices:
            _store_code(bundle, model, target, progress, where=where)
        logger.info(
            "%s is built for %s, but neither warmed up nor verified: this machine has none",
            bundle.directory,
            wanted,
        )
    return directories


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Target:
    """What bundles are for.

    Attributes:
        devices: devices of this machine, or descriptions of others; empty if only their platform is known.
        memory_bytes: memory of one device, if known.
    """

    platform: Platform
    num_devices: int
    devices: Sequence[jax.Device]
    is_here: bool
    memory_bytes: int | None


def _target(wanted: WantedDevices | None) -> _Target:
    if wanted is not None and wanted.kind is not None and not may_be_here(wanted.platform):
        # Before JAX starts: it would try each platform that is installed, and fail loudly.
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        platform, devices = local_devices(wanted)
    except DeviceError:
        if wanted is None:
            raise
    else:
        return _Target(
            platform=platform,
            num_devices=len(devices),
            devices=devices,
            is_here=True,
            memory_bytes=device_memory_bytes(devices[0]),
        )
    kind = wanted.kind
    return _Target(
        platform=wanted.platform,
        num_devices=wanted.count,
        devices=() if kind is None else described_devices(kind, wanted.count),
        is_here=False,
        memory_bytes=None if kind is None else KINDS[kind].memory_bytes,
    )


def _place(output: Path | None, name: str, num_models: int) -> Path | None:
    if output is None or num_models == 1:
        return output
    if is_bundle(output):
        raise ConfigError(f"--output {output} is one bundle, but the config has {num_models} models")
    return output / name.replace("/", "--")


def _warm_up(
    bundle: FoundBundle, model: ModelConfig, target: _Target, progress: Progress, *, where: str
) -> None:
    directory = bundle.directory
    manifest = open_bundle(directory, platform=target.platform, num_devices=target.num_devices)
    with build_lock(directory):
        engine = start_engine(
            directory,
            manifest,
            model,
            devices=target.devices,
            code_roots=(directory / BUNDLE_CODE,),
            dispatch_lock=threading.Lock(),
            progress=progress,
            where=where,
        )
    # The lock is not held here, because writing the figures takes it.
    try:
        check_new_bundle(bundle, manifest, model, engine, progress)
    finally:
        engine.stop()


def _store_code(
    bundle: FoundBundle, model: ModelConfig, target: _Target, progress: Progress, *, where: str
) -> None:
    """Compile the programs for devices that are not here, and store their machine code in the bundle."""
    from vinfer.engine.loading.mesh import make_mesh
    from vinfer.engine.loading.programs import LoadedPrograms

    directory = bundle.directory
    manifest = open_bundle(directory, platform=target.platform, num_devices=target.num_devices)
    roots = (directory / BUNDLE_CODE,)
    with build_lock(directory):
        num_pages = device_pages(
            directory,
            manifest,
            model,
            target.devices,
            memory_bytes=target.memory_bytes,
            code_roots=roots,
            where=where,
        )
        mesh = make_mesh(manifest, target.devices)
        programs = LoadedPrograms(directory, manifest, mesh, roots, num_pages)
        for done, program in enumerate(manifest.programs):
            progress(model.name, "compiling", done, len(manifest.programs))
            programs.store(program)
