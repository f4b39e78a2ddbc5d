"""`vinfer precompile`: does the slow part of a start ahead of deployment.

Builds each bundle, then loads it as the server would, so that any problem shows up here. Stores the compiled
code in the bundle, and compares a new bundle with transformers. If the target is not this machine, it only
writes the bundle.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vinfer.bundle.directory import build_lock, is_bundle
from vinfer.bundle.manifest import Platform
from vinfer.config import Config, ModelConfig
from vinfer.errors import ConfigError, DeviceError
from vinfer.launch.bundles import FoundBundle, Progress, find_or_build, open_bundle
from vinfer.launch.devices import device_memory_bytes, local_devices
from vinfer.launch.loader import start_engine
from vinfer.launch.parity import check_new_bundle

if TYPE_CHECKING:
    import jax

logger = logging.getLogger(__name__)


def precompile(
    config: Config, *, wanted: tuple[Platform, int] | None, output: Path | None, progress: Progress
) -> list[Path]:
    """Write and warm up the bundle of every model; return their directories.

    Args:
        wanted: parsed `--devices`; for a platform that this machine lacks, bundles are built but not warmed
            up.
        output: the bundle's directory for one model; for several, the parent of a directory per name.

    Raises:
        VinferError: as when the server starts.
    """
    try:
        platform, devices = local_devices(wanted)
    except DeviceError:
        if wanted is None:
            raise
        platform, devices = wanted[0], ()
    num_devices = wanted[1] if wanted else len(devices)
    directories = []
    for position, model in enumerate(config.models):
        bundle = find_or_build(
            model,
            where=f"models[{position}]",
            platform=platform,
            num_devices=num_devices,
            bundles_dir=config.bundles_dir,
            progress=progress,
            output=_place(output, model.name, len(config.models)),
            memory_bytes=device_memory_bytes(devices[0]) if devices else None,
            verify_weights=True,
        )
        directories.append(bundle.directory)
        if devices:
            _warm_up(bundle, model, platform, devices, progress, where=f"models[{position}]")
        else:
            logger.info(
                "%s is built for %s, but neither warmed up nor verified: this machine has none",
                bundle.directory,
                platform,
            )
    return directories


def _place(output: Path | None, name: str, num_models: int) -> Path | None:
    if output is None or num_models == 1:
        return output
    if is_bundle(output):
        raise ConfigError(f"--output {output} is one bundle, but the config has {num_models} models")
    return output / name.replace("/", "--")


def _warm_up(
    bundle: FoundBundle,
    model: ModelConfig,
    platform: Platform,
    devices: Sequence[jax.Device],
    progress: Progress,
    *,
    where: str,
) -> None:
    from vinfer.engine.compilation import platform_key, set_compilation_cache

    directory = bundle.directory
    manifest = open_bundle(directory, platform=platform, num_devices=len(devices))
    store = directory / "xla" / platform_key()
    with build_lock(directory), tempfile.TemporaryDirectory(prefix="vinfer-xla-") as scratch:
        if store.is_dir():
            shutil.copytree(store, scratch, dirs_exist_ok=True)
        set_compilation_cache(Path(scratch))
        engine = start_engine(
            directory,
            manifest,
            model,
            devices=devices,
            dispatch_lock=threading.Lock(),
            progress=progress,
            where=where,
        )
        store.mkdir(parents=True, exist_ok=True)
        for file in Path(scratch).glob("*-cache"):
            if not (store / file.name).exists():
                shutil.copyfile(file, store / file.name)
    # The lock is not held here, because writing the figures takes it.
    try:
        check_new_bundle(bundle, manifest, model, engine, progress)
    finally:
        engine.stop()
