"""Compiles the programs of a bundle for a target, and writes their HLO and what the compiler says of them.

    python -m accelerator_check.compile DIRECTORY TARGET RESULTS KIND...

Compiles the programs of some kinds, as the engine does.

Runs in a process that never imports EasyDeL. All shapes and shardings come from the manifest.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from vinfer.bundle.directory import read_manifest
from vinfer.engine.loading.executables import ProgramSignature, compile_program
from vinfer.engine.loading.mesh import make_mesh
from vinfer.launch.device_kinds import described_devices


def compile_programs(directory: Path, kind: str, results: Path, kinds: Collection[str]) -> None:
    """Write NAME.json and NAME.hlo for each program of some kinds that `results` lacks."""
    manifest = read_manifest(directory)
    mesh = make_mesh(manifest, described_devices(kind, manifest.num_devices))
    # With the most pages that requests can use.
    kv_specs = manifest.kv_specs(manifest.page_plan.most_pages())
    results.mkdir(parents=True, exist_ok=True)
    for program in manifest.programs:
        record = results / f"{program.shape.name}.json"
        if record.exists() or program.shape.kind not in kinds:
            continue
        started = time.perf_counter()
        figures: dict[str, Any]
        try:
            signature = ProgramSignature(program, manifest, kv_specs, mesh)
            compiled = compile_program(directory / "programs", signature)
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


if __name__ == "__main__":
    compile_programs(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
