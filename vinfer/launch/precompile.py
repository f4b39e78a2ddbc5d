"""`vinfer precompile`: does the slow part of a start ahead of deployment.

Builds each bundle, then loads it as the server would, so that any problem shows up here. Stores machine code
in the bundle, and compares a new bundle with transformers. If the target is not this machine, it writes the
bundle, and machine code only for a kind of device that is named.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vinfer.bundle.directory import BUNDLE_CODE, build_lock, is_bundle
from vinfer.bundle.progress import ModelProgress
from vinfer.config import Config, ModelConfig
from vinfer.errors import ConfigError
from vinfer.launch.bundles import FoundBundle, bundle_work, find_or_build
from vinfer.launch.device_kinds import described_devices
from vinfer.launch.devices import Target, WantedDevices, find_target
from vinfer.launch.engine_start import device_pages, start_engine
from vinfer.launch.parity import check_new_bundle
from vinfer.launch.progress.clock import PhaseClock

if TYPE_CHECKING:
    import jax

logger = logging.getLogger(__name__)


def precompile(
    config: Config, *, wanted: WantedDevices | None, output: Path | None, clock: PhaseClock
) -> list[Path]:
    """Write and warm up the bundle of every model; return their directories.

    Args:
        wanted: parsed `--devices`; for devices that this machine lacks, bundles are neither warmed up nor
            verified.
        output: the bundle's directory for one model; for several, the parent of a directory per name.

    Raises:
        VinferError: as when the server starts.
    """
    target = find_target(wanted)
    described: Sequence[jax.Device] = ()
    if not target.is_here and wanted is not None and wanted.kind is not None:
        # Before a build: its compiler may be missing.
        described = described_devices(wanted.kind, wanted.count)
    directories = []
    for position, model in enumerate(config.models):
        where = f"models[{position}]"
        bundle = find_or_build(
            model,
            where=where,
            target=target,
            bundles_dir=config.bundles_dir,
            progress=clock,
            expect=clock.expect,
            output=_place(output, model.name, len(config.models)),
            verify_weights=True,
        )
        directories.append(bundle.directory)
        if target.is_here:
            _warm_up(bundle, model, target, clock, where=where)
            continue
        if described:
            _store_code(bundle, model, dataclasses.replace(target, devices=described), clock, where=where)
        logger.info(
            "%s is built for %s, but neither warmed up nor verified: this machine has none",
            bundle.directory,
            wanted,
        )
    return directories


def _place(output: Path | None, name: str, num_models: int) -> Path | None:
    if output is None or num_models == 1:
        return output
    if is_bundle(output):
        raise ConfigError(f"--output {output} is one bundle, but the config has {num_models} models")
    return output / name.replace("/", "--")


def _warm_up(
    bundle: FoundBundle, model: ModelConfig, target: Target, clock: PhaseClock, *, where: str
) -> None:
    roots = (bundle.directory / BUNDLE_CODE,)
    clock.expect(model.name, bundle_work(bundle.manifest, roots))
    with build_lock(bundle.directory):
        engine = start_engine(bundle, model, target, code_roots=roots, progress=clock, where=where)
    # The lock is not held here, because writing the figures takes it.
    try:
        check_new_bundle(bundle, model, engine, clock)
    finally:
        engine.stop()


def _store_code(
    bundle: FoundBundle, model: ModelConfig, target: Target, progress: ModelProgress, *, where: str
) -> None:
    """Compile the programs for devices that are not here, and store their machine code in the bundle."""
    from vinfer.engine.loading.mesh import make_mesh
    from vinfer.engine.loading.programs import LoadedPrograms

    directory, manifest = bundle.directory, bundle.manifest
    roots = (directory / BUNDLE_CODE,)
    with build_lock(directory):
        num_pages = device_pages(bundle, model, target, code_roots=roots, where=where)
        mesh = make_mesh(manifest, target.devices)
        programs = LoadedPrograms(directory, manifest, mesh, roots, num_pages)
        for done, program in enumerate(manifest.programs):
            progress(model.name, "compiling", done, len(manifest.programs))
            programs.store(program)
