"""`vinfer plan`: what each model of a config takes of a device, and how many requests run together.

Reads configs, headers of checkpoints, manifests and headers of machine code: no weights. Builds nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vinfer.bundle.directory import read_manifest
from vinfer.bundle.programs import ProgramShape
from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.plan import build_versions, plan_build
from vinfer.config import Config, ModelConfig
from vinfer.errors import DeviceError, VinferError
from vinfer.launch.bundles import (
    FoundBundle,
    bundle_work,
    check_overrides,
    damage_of,
    open_bundle,
    planned_work,
)
from vinfer.launch.devices import Target, WantedDevices, planned_target
from vinfer.launch.fit import GIB, ModelFit, bundle_parts, fit_model, planned_parts
from vinfer.launch.kv_memory import memory_of
from vinfer.launch.progress.times import BUILD_PHASES, START_PHASES, PhaseTimes, Work

CODE_BYTES = 64 << 20
"""What XLA's CPU client takes for its first programs."""
CODE_BYTES_PER_WEIGHT = 270_000
"""What XLA's CPU client holds of a loaded program for each weight that it reads; measured with SmolLM2."""
_LENGTHS = (512, 2048, 8192, 32_768, 131_072)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """One model of a config on some devices.

    Attributes:
        bundle: where its figures are from; None if they are estimated from the checkpoint.
        temporary_bytes: most memory that a program needs besides its arguments, on one device; None if it is
            not known until the programs are compiled.
        code_bytes: what loaded programs take of the same memory; known for a CPU only.
        build_seconds: expected time of the build; 0 if the bundle is there.
        start_seconds: expected time of a start from the bundle; None if nothing is known of such devices.
        notes: what a user should know about how the checkpoint is read.
    """

    name: str
    dtype: str
    mesh: Mapping[str, int]
    num_slots: int
    bundle: Path | None
    fit: ModelFit
    temporary_bytes: int | None
    programs: tuple[str, ...]
    code_bytes: int
    build_seconds: float
    start_seconds: float | None
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """What the model takes of one device."""
        return self.fit.num_bytes + self.code_bytes

    @property
    def num_together(self) -> dict[int, int]:
        """Requests that run together, over all devices, by their length: prompt and answer, in tokens."""
        longest = self.fit.max_len
        lengths = [length for length in _LENGTHS if length < longest] + ([longest] if longest else [])
        return {length: self.fit.num_together(length) * self.mesh["dp"] for length in lengths}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All models of a config on the same devices."""

    target: Target
    models: tuple[ModelPlan, ...]

    @property
    def device_bytes(self) -> int | None:
        """Memory of one device, if known."""
        totals = [model.fit.memory.of_one_device for model in self.models]
        return min((total for total in totals if total is not None), default=None)

    @property
    def left_bytes(self) -> int | None:
        """Memory that all models leave on one device, if known; negative if they do not fit."""
        total = self.device_bytes
        return None if total is None else total - sum(model.num_bytes for model in self.models)

    @property
    def problems(self) -> list[VinferError]:
        """What does not fit, with the keys to change."""
        found = [model.fit.problem for model in self.models if model.fit.problem is not None]
        total, left = self.device_bytes, self.left_bytes
        if not found and total is not None and left is not None and left < 0:
            found = [
                DeviceError(
                    f"the models need {(total - left) / GIB:.2f} GiB per device together; a device has "
                    f"{total / GIB:.2f}: give each of them a kv_cache"
                )
            ]
        return found


def plan_models(config: Config, *, wanted: WantedDevices | None, code_cache: Path) -> Plan:
    """Plan every model of a config.

    Args:
        wanted: parsed `--devices`; a kind of device need not be here, and is not looked for.
        code_cache: see `FoundBundle.code_roots`.

    Raises:
        VinferError: a config, checkpoint or bundle that cannot be served on any number of such devices.
    """
    target = planned_target(wanted)
    return Plan(
        target=target,
        models=tuple(
            _plan_model(model, target, config, code_cache, where=f"models[{position}]")
            for position, model in enumerate(config.models)
        ),
    )


def require_fit(plan: Plan) -> None:
    """Raise what is wrong with a plan, if anything is.

    Raises:
        ConfigError, DeviceError: a line per problem, each with the key to change.
    """
    if problems := plan.problems:
        raise type(problems[0])("\n".join(problem.message for problem in problems))


def as_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain data; sizes are bytes of one device, null where they are not known."""
    return {
        "fits": not plan.problems,
        "problems": [problem.message for problem in plan.problems],
        "platform": plan.target.platform,
        "num_devices": plan.target.num_devices,
        "device_bytes": plan.device_bytes,
        "left_bytes": plan.left_bytes,
        "models": [_model_json(model) for model in plan.models],
    }


def _model_json(model: ModelPlan) -> dict[str, Any]:
    fit = model.fit
    return {
        "name": model.name,
        "bundle": None if model.bundle is None else str(model.bundle),
        "dtype": model.dtype,
        "mesh": dict(model.mesh),
        "num_slots": model.num_slots,
        "max_model_len": fit.max_len,
        "bytes": {
            **fit.parts.by_name,
            "kv_cache": fit.kv_cache_bytes,
            "temporary": model.temporary_bytes,
            "programs": model.code_bytes,
        },
        "page_size": fit.parts.pages.page_size,
        "num_pages": [pages * model.mesh["dp"] for pages in fit.num_pages],
        "requests_together": [
            {"tokens": length, "requests": count} for length, count in model.num_together.items()
        ],
        "programs": list(model.programs),
        "build_seconds": model.build_seconds,
        "start_seconds": model.start_seconds,
        "notes": list(model.notes),
    }


def _plan_model(
    model: ModelConfig, target: Target, config: Config, code_cache: Path, *, where: str
) -> ModelPlan:
    bundles_dir, times = config.bundles_dir, PhaseTimes(config.cache_dir)
    source = resolve_source(model.source, revision=model.revision)
    if source.kind == "bundle":
        check_overrides(model, read_manifest(source.path), where=where)
        manifest = open_bundle(source.path, platform=target.platform, num_devices=target.num_devices)
        found = FoundBundle(source.path, source, manifest)
        return _of_bundle(found, model, target, code_cache, times, where=where)
    plan = plan_build(
        model,
        source,
        where=where,
        platform=target.platform,
        num_devices=target.num_devices,
        # What only reads makes no directories.
        code_cache=bundles_dir if bundles_dir.is_dir() else None,
    )
    directory = bundles_dir / plan.key
    if damage_of(directory, plan.key, verify_weights=False) is None:
        found = FoundBundle(directory, source, read_manifest(directory))
        return _of_bundle(found, model, target, code_cache, times, where=where)
    checkpoint = open_checkpoint(source)
    parts = planned_parts(plan, checkpoint, where=where)
    memory = memory_of(
        target.platform, target.memory_bytes, num_devices=plan.num_devices, weights=parts.num_bytes
    )
    work = planned_work(plan, checkpoint, parts)
    return ModelPlan(
        name=model.name,
        dtype=plan.dtype,
        mesh=plan.mesh,
        num_slots=plan.num_slots,
        bundle=None,
        fit=fit_model(parts, model, memory, dp=plan.mesh["dp"], where=where),
        temporary_bytes=None,
        programs=tuple(shape.name for shape in plan.programs),
        code_bytes=_code_bytes(work, plan.programs),
        build_seconds=times.together(BUILD_PHASES, work) or 0.0,
        start_seconds=times.together(START_PHASES, work),
        notes=checkpoint.notes,
    )


def _of_bundle(
    bundle: FoundBundle,
    model: ModelConfig,
    target: Target,
    code_cache: Path,
    times: PhaseTimes,
    *,
    where: str,
) -> ModelPlan:
    manifest = bundle.manifest
    parts = bundle_parts(manifest)
    work = bundle_work(manifest, bundle.code_roots(code_cache))
    temporary, stored = _stored_code(bundle, target, code_cache)
    memory = memory_of(
        target.platform,
        target.memory_bytes,
        num_devices=manifest.num_devices,
        weights=parts.num_bytes,
        temporary=temporary or 0,
    )
    return ModelPlan(
        name=model.name,
        dtype=manifest.dtype,
        mesh=manifest.mesh,
        num_slots=manifest.num_slots,
        bundle=bundle.directory,
        fit=fit_model(parts, model, memory, dp=manifest.mesh["dp"], where=where, stored=stored),
        temporary_bytes=temporary,
        programs=tuple(program.shape.name for program in manifest.programs),
        code_bytes=_code_bytes(work, [program.shape for program in manifest.programs]),
        build_seconds=0.0,
        start_seconds=times.together(START_PHASES, work),
    )


def _code_bytes(work: Work, shapes: Sequence[ProgramShape]) -> int:
    """Return what loaded programs take of the memory of the weights: nothing but on a CPU."""
    if work.platform != "cpu":
        return 0
    num_programs = sum(shape.uses_weights for shape in shapes)
    return CODE_BYTES + CODE_BYTES_PER_WEIGHT * work.num_weights * num_programs


def _stored_code(
    bundle: FoundBundle, target: Target, code_cache: Path
) -> tuple[int | None, list[tuple[int, ...]]]:
    """Return the most temporary memory that stored code for the devices needs, and its numbers of pages."""
    from vinfer.engine.loading.code_store import stored_temporary_bytes
    from vinfer.engine.loading.programs import largest_programs

    stored = stored_temporary_bytes(
        bundle.code_roots(code_cache),
        {
            "platform": {target.platform},
            "device_kind": target.kinds,
            "num_devices": {str(bundle.manifest.num_devices)},
            "jaxlib": {build_versions()["jaxlib"]},
        },
    )
    names = {program.shape.name for program in largest_programs(bundle.manifest)}
    sizes = [size for programs in stored.values() for name, size in programs.items() if name in names]
    return max(sizes, default=None), sorted(stored)
