"""Compiles the programs of a bundle for a target, and writes their HLO and what the compiler says of them.

    python -m accelerator_check.compile DIRECTORY TARGET RESULTS

Runs in a process that never imports EasyDeL. All shapes and shardings come from the manifest.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from accelerator_check.targets import TARGETS, Target, compiler_options, devices
from vinfer.bundle.directory import read_manifest
from vinfer.bundle.manifest import ArraySpec, Manifest, ProgramSpec, argument_specs
from vinfer.engine.load import COMPILER_OPTIONS, make_mesh


def compile_programs(directory: Path, target: Target, results: Path) -> None:
    """Write NAME.json and NAME.hlo for each program with a KV cache that `results` lacks."""
    manifest = read_manifest(directory)
    mesh = make_mesh(manifest, devices(target, manifest.num_devices))
    results.mkdir(parents=True, exist_ok=True)
    for program in manifest.programs:
        record = results / f"{program.shape.name}.json"
        if record.exists() or not program.shape.uses_kv:
            continue
        started = time.perf_counter()
        figures: dict[str, Any]
        try:
            compiled = _compile(directory, program, manifest, mesh, target)
            memory = compiled.memory_analysis()
            figures = {
                "temp_bytes": memory.temp_size_in_bytes,
                "argument_bytes": memory.argument_size_in_bytes,
            }
        except jax.errors.JaxRuntimeError as error:
            figures = {"error": str(error).strip().splitlines()[0][:300]}
        else:
            figures["hlo_error"] = _write_text(compiled, record.with_suffix(".hlo"))
        figures["compile_seconds"] = round(time.perf_counter() - started, 1)
        record.write_text(json.dumps(figures))
        print(f"{directory.name} {program.shape.name}: {json.dumps(figures)}", flush=True)


def _write_text(compiled: Any, path: Path) -> str | None:
    """Write the optimised HLO; return why there is none."""
    try:
        path.write_text(compiled.as_text())
    except jax.errors.JaxRuntimeError as error:
        # jaxlib cannot read the HLO of a libtpu that is much newer.
        return str(error).strip().splitlines()[0][:300]
    return None


def _compile(directory: Path, program: ProgramSpec, manifest: Manifest, mesh: Mesh, target: Target) -> Any:
    """Compile one program as `vinfer.engine.load` does, for the most pages that requests can use."""
    groups = argument_specs(
        program.shape,
        program.inputs,
        weights=manifest.weights,
        kv=manifest.kv_specs(manifest.page_plan.most_pages()),
        state=manifest.state,
        images=manifest.images,
    )
    arguments = tuple(tuple(_sharding(spec, mesh) for spec in group) for group in groups)
    results = (arguments[1], arguments[2], tuple(_sharding(spec, mesh) for spec in program.outputs))
    exported = export.deserialize(bytearray((directory / "programs" / program.file).read_bytes()))
    jitted = jax.jit(exported.call, donate_argnums=(1, 2), in_shardings=arguments, out_shardings=results)
    abstract = [
        tuple(jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype)) for spec in group) for group in groups
    ]
    return jitted.lower(*abstract).compile(
        {**COMPILER_OPTIONS.get(manifest.platform, {}), **compiler_options(target)}
    )


def _sharding(spec: ArraySpec, mesh: Mesh) -> Sharding:
    if mesh.size == 1:
        return SingleDeviceSharding(mesh.devices.flat[0])
    return NamedSharding(mesh, PartitionSpec(*spec.axes))


if __name__ == "__main__":
    compile_programs(Path(sys.argv[1]), TARGETS[sys.argv[2]], Path(sys.argv[3]))
