"""Finds the bundle directory of a model's config, or has the build child build it.

Runs on the loader thread. Knows nothing about engines or the server.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vinfer.bundle.directory import BUNDLE_CODE, build_lock, is_bundle, read_manifest, writing
from vinfer.bundle.manifest import Manifest, Platform, mesh_words
from vinfer.bundle.progress import ModelProgress
from vinfer.bundle.verification import check_fits, verify_files
from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters, open_checkpoint
from vinfer.checkpoint.source import ResolvedSource, resolve_source
from vinfer.compiler.child import run_build
from vinfer.compiler.plan import DTYPE_BYTES, BuildPlan, build_versions, plan_build, plan_key
from vinfer.config import Config, ModelConfig, SpeculationConfig
from vinfer.errors import BuildError, BundleError, ConfigError
from vinfer.launch.devices import Target
from vinfer.launch.fit import GIB, FixedParts, bundle_parts, fit_model, planned_parts
from vinfer.launch.kv_memory import memory_of
from vinfer.launch.progress.times import Work

logger = logging.getLogger(__name__)

Expect = Callable[[str, Work], None]
"""Called with (model name, what there is to do)."""


@dataclasses.dataclass(frozen=True)
class FoundBundle:
    """A bundle that is complete and fits this process.

    Attributes:
        is_new: it has just been built.
    """

    directory: Path
    source: ResolvedSource
    manifest: Manifest
    is_new: bool = False

    def code_roots(self, code_cache: Path) -> tuple[Path, Path]:
        """Return where its machine code is looked for, and stored, first choice first.

        Args:
            code_cache: a directory for the code of all bundles that are not written to.
        """
        inside, outside = self.directory / BUNDLE_CODE, code_cache / self.manifest.key
        # A bundle that was given by its path is left as it is, if possible.
        return (outside, inside) if self.source.kind == "bundle" else (inside, outside)


def find_or_build(
    model: ModelConfig,
    *,
    where: str,
    target: Target,
    bundles_dir: Path,
    progress: ModelProgress,
    output: Path | None = None,
    verify_weights: bool = False,
    expect: Expect = lambda _name, _work: None,
    builds: bool = True,
) -> FoundBundle:
    """Return a model's bundle, opened; build it if it is missing or damaged.

    Args:
        where: the model's path in the config, such as `models[0]`.
        output: write the bundle here instead of under bundles_dir.
        expect: is told how much there is to build.
        verify_weights: also hash the weights of an existing bundle, which takes seconds per GB.
        builds: false for a follower, which must find it.

    Raises:
        CheckpointError, ConfigError, DeviceError, BuildError.
        BundleError: it does not fit, or would have to be built and must not.
    """

    platform, num_devices = target.platform, target.num_devices

    def opened(directory: Path, *, is_new: bool = False) -> FoundBundle:
        manifest = open_bundle(directory, platform=platform, num_devices=num_devices)
        return FoundBundle(directory, source, manifest, is_new)

    progress(model.name, "finding checkpoint", 0, 1)
    source = resolve_source(
        model.source,
        revision=model.revision,
        downloaded=lambda done, total: progress(model.name, "downloading", done, total),
    )
    if source.kind == "bundle":
        check_overrides(model, read_manifest(source.path), where=where)
        return opened(source.path)
    key = plan_key(
        model, source, where=where, platform=platform, num_devices=num_devices, code_cache=bundles_dir
    )
    directory = output or bundles_dir / key
    # First without the lock, because a bundle may be on a read-only volume.
    if damage_of(directory, key, verify_weights=verify_weights) is None:
        return opened(directory)
    if not builds:
        raise BundleError(
            f"bundle {directory} is missing or damaged, and only the leader builds: build it with vinfer "
            "precompile, and give it to all members, by a volume that they share or as models[].source"
        )
    with build_lock(directory, lambda: progress(model.name, "waiting for another build", 0, 1)):
        damage = damage_of(directory, key, verify_weights=verify_weights)
        if damage is None:
            return opened(directory)
        if damage:
            logger.warning("%s; building it anew", damage)
        if output is not None and output.exists() and any(output.iterdir()) and not is_bundle(output):
            raise ConfigError(f"--output {output} is not empty and not a bundle: choose another directory")
        plan = plan_build(
            model, source, where=where, platform=platform, num_devices=num_devices, code_cache=bundles_dir
        )
        checkpoint = open_checkpoint(source)
        parts = _announce(model, plan, checkpoint, where=where, memory_bytes=target.memory_bytes)
        expect(model.name, planned_work(plan, checkpoint, parts))
        _check_space(directory, num_parameters(checkpoint) * DTYPE_BYTES[plan.dtype], where=where)
        with writing(directory) as scratch:
            run_build(
                plan,
                revision=model.revision,
                directory=scratch,
                log_path=directory.parent / f"{directory.name}.build.log",
                progress=lambda phase, done, total: progress(model.name, phase, done, total),
            )
    return opened(directory, is_new=True)


def damage_of(directory: Path, key: str, *, verify_weights: bool) -> str | None:
    """Return why the directory is not the bundle of a key: None if it is, "" if it is missing or another."""
    if not is_bundle(directory):
        return ""
    try:
        manifest = read_manifest(directory)
        verify_files(directory, manifest, weights=verify_weights)
    except BundleError as error:
        return error.message
    return None if manifest.key == key else ""


def _check_space(directory: Path, num_bytes: int, *, where: str) -> None:
    """Check that the weights of a bundle will find room on disk.

    Raises:
        BuildError: they will not.
    """
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise BuildError(
            f"{where} needs {num_bytes / GIB:.2f} GiB on disk for its bundle; {existing} has "
            f"{free / GIB:.2f}: free some space, or set cache_dir to a directory on another disk"
        )


def _announce(
    model: ModelConfig, plan: BuildPlan, checkpoint: Checkpoint, *, where: str, memory_bytes: int | None
) -> FixedParts:
    """Log what is about to be built, and return what it takes of a device."""
    for note in checkpoint.notes:
        logger.warning("%s: %s", model.name, note)
    parts = planned_parts(plan, checkpoint, where=where)
    memory = memory_of(plan.platform, memory_bytes, num_devices=plan.num_devices, weights=parts.num_bytes)
    fit = fit_model(parts, model, memory, dp=plan.mesh["dp"], where=where)
    if fit.problem is not None:
        raise fit.problem
    logger.info(
        "plan for %s: mesh %s, per device %s and %.2f GiB KV cache, %d programs",
        model.name,
        mesh_words(plan.mesh),
        ", ".join(f"{size / GIB:.2f} GiB {name.replace('_', ' ')}" for name, size in parts.by_name.items()),
        fit.kv_cache_bytes / GIB,
        len(plan.programs),
    )
    return parts


def planned_work(plan: BuildPlan, checkpoint: Checkpoint, parts: FixedParts) -> Work:
    """Return what there is to do for a bundle that is not built."""
    return Work(
        platform=plan.platform,
        weight_bytes=parts.by_name["weights"],
        num_weights=len(checkpoint.tensor_names()),
        num_programs=len(plan.programs),
    )


def bundle_work(manifest: Manifest, code_roots: Sequence[Path]) -> Work:
    """Return what there is to do for a start from a bundle."""
    return Work(
        platform=manifest.platform,
        weight_bytes=bundle_parts(manifest).by_name["weights"],
        num_weights=len(manifest.weights),
        num_programs=len(manifest.programs),
        has_code=any(root.is_dir() and any(root.iterdir()) for root in code_roots),
    )


def check_overrides(model: ModelConfig, manifest: Manifest, *, where: str) -> None:
    """Refuse a config that states other values than the bundle, whose shapes are fixed."""
    pooling = None if manifest.embeddings is None else manifest.embeddings.pooling
    facts = {
        "dtype": manifest.dtype,
        "num_slots": manifest.num_slots,
        "max_model_len": None if model.max_model_len is None else manifest.max_model_len,
        "embeddings": pooling,
        # A bundle of single shapes is fine even if the config does not ask for them.
        "deterministic": model.deterministic and manifest.is_deterministic,
        "speculation": _verified_by(manifest, model.speculation),
    }
    for field, built in facts.items():
        stated = getattr(model, field)
        if field in model.model_fields_set and stated != built:
            raise ConfigError(
                f"{where}.{field} is {stated}; the bundle {model.source} was built with {built}: leave the "
                "field out, or run vinfer precompile with the new value"
            )


def _verified_by(manifest: Manifest, speculation: SpeculationConfig | None) -> SpeculationConfig | str | None:
    """Return what is stated if the bundle's programs verify such drafts, else what they verify."""
    num_tokens = manifest.program_table.max_draft_tokens
    if speculation is None or speculation.tokens == num_tokens:
        # A bundle that could speculate need not.
        return speculation
    return f"tokens={num_tokens}" if num_tokens else None


def open_bundle(directory: Path, *, platform: Platform, num_devices: int) -> Manifest:
    """Read a bundle's manifest and check that the bundle is complete and fits this process.

    Raises:
        BundleError.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest, weights=False)
    versions = build_versions()
    check_fits(
        directory,
        manifest,
        platform=platform,
        num_devices=num_devices,
        versions={name: versions[name] for name in ("jax", "jaxlib")},
    )
    return manifest


def code_cache_dir(config: Config, environ: Mapping[str, str]) -> Path:
    """Return where machine code goes that its bundle cannot store: `VINFER_XLA_CACHE`, or the cache."""
    given = environ.get("VINFER_XLA_CACHE")
    return Path(given) if given else config.cache_dir / "xla"
