"""Programs as XLA executables: compiled, taken apart for the code store, and put together without tracing.

JAX loads a stored executable only from a pickle, so `load_executable` builds the objects that its
`serialize_executable` would unpickle. They are private: another minor version of JAX, which pyproject.toml
rules out, needs this file checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform as machine
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export, stages, tree_util
from jax._src import core
from jax._src.interpreters import pxla
from jax._src.lib import xla_client  # type: ignore[attr-defined]
from jax.sharding import Mesh, Sharding

from vinfer.bundle.manifest import ArraySpec, Manifest, Platform, ProgramSpec, argument_specs
from vinfer.engine.loading.code_store import MachineCode
from vinfer.engine.loading.mesh import sharding_of, weight_placement
from vinfer.errors import BundleError

_FLAG_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# What compiles and runs programs, beside jaxlib.
_RUNTIMES: dict[Platform, tuple[str, ...]] = {
    "cpu": (),
    "tpu": ("libtpu", "libtpu-nightly"),
    "cuda": ("jax-cuda12-pjrt", "jax-cuda13-pjrt"),
}


class ProgramSignature:
    """The arrays of one program on a mesh, in the order of its arguments and results.

    Args:
        kv_specs: arrays of the KV cache, with the number of pages.
    """

    def __init__(
        self, program: ProgramSpec, manifest: Manifest, kv_specs: Sequence[ArraySpec], mesh: Mesh
    ) -> None:
        self.mesh = mesh
        self.name = program.shape.name
        self.file = program.file
        self.arguments: tuple[tuple[ArraySpec, ...], ...] = tuple(
            tuple(group)
            for group in argument_specs(
                program.shape,
                program.inputs,
                weights=manifest.weights,
                kv=kv_specs,
                state=manifest.state,
                images=manifest.images,
            )
        )
        # KV cache and state are donated and come back.
        self.results = (self.arguments[1], self.arguments[2], tuple(program.outputs))

    def shardings(self, groups: tuple[tuple[ArraySpec, ...], ...]) -> tuple[tuple[Sharding, ...], ...]:
        return tuple(tuple(sharding_of(spec, self.mesh) for spec in group) for group in groups)


def compile_program(programs: Path, signature: ProgramSignature) -> stages.Compiled:
    """Trace and compile one exported program.

    Args:
        programs: the directory of the bundle's programs.

    Raises:
        BundleError: the file is not an exported program.
    """
    try:
        exported = export.deserialize(bytearray((programs / signature.file).read_bytes()))
    except Exception as error:
        raise BundleError(
            f"programs/{signature.file} is not a program: run vinfer precompile again"
        ) from error
    # Donated results keep the shardings of the arguments, so a second call finds the layout that the first
    # one left, and no program is ever compiled for another layout.
    jitted = jax.jit(
        exported.call,
        donate_argnums=(1, 2),
        in_shardings=(
            tuple(weight_placement(spec, signature.mesh) for spec in signature.arguments[0]),
            *signature.shardings(signature.arguments[1:]),
        ),
        out_shardings=signature.shardings(signature.results),
    )
    abstract = [
        tuple(jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype)) for spec in group)
        for group in signature.arguments
    ]
    return jitted.lower(*abstract).compile(compiler_options(signature.mesh.devices.flat[0]))


def compiler_options(device: jax.Device) -> dict[str, str | bool]:
    """Return XLA's options for programs on a kind of device."""
    if device.platform == "cpu":
        return {}
    if device.platform == "tpu":
        # XLA would move a small pool to fast memory and back at each step, which costs more than it saves.
        # Weights, of which a step uses each byte, are still fetched ahead.
        return {"xla_tpu_msa_inefficient_use_to_copy_ratio": "0.99"}
    # For one row, XLA would multiply weights element by element, write the products, and add them up later:
    # three times the traffic.
    options: dict[str, str | bool] = {"xla_disable_hlo_passes": "dot-strength-reduction"}
    if jax.process_count() > 1 or not any(device is local for local in jax.local_devices()):
        # On a GPU that is not here, autotuning cannot run its candidates. In a group of processes each could
        # choose other ones, and their programs would no longer be the same.
        options["xla_gpu_autotune_level"] = "0"
    return options


def machine_code(compiled: stages.Compiled) -> MachineCode | None:
    """Take a program apart that has just been compiled; None if its platform cannot serialize it."""
    executable: Any = compiled._executable
    analysis = compiled.memory_analysis()
    try:
        content = executable.xla_executable.serialize()
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    return MachineCode(
        bytes(content),
        tuple(sorted(executable._kept_var_idx)),
        0 if analysis is None else analysis.temp_size_in_bytes,
    )


def load_executable(code: MachineCode, signature: ProgramSignature) -> stages.Compiled:
    """Return the program that `machine_code` took apart.

    Raises:
        jax.errors.JaxRuntimeError: the runtime does not take the bytes.
    """
    devices = xla_client.DeviceList(tuple(signature.mesh.devices.flat))
    backend = signature.mesh.devices.flat[0].client
    executable = backend.deserialize_executable(code.executable, executable_devices=devices)
    arguments = _arrays(signature, signature.arguments)
    inputs = [arguments[position] for position in code.kept_inputs]
    outputs = _arrays(signature, signature.results)
    input_layouts, output_layouts = pxla._get_layouts_from_executable(
        executable, [None] * len(inputs), [None] * len(outputs), 0
    )
    unloaded = pxla.UnloadedMeshExecutable(
        xla_executable=executable,
        device_list=devices,
        backend=backend,
        input_avals=[array for array, _ in inputs],
        input_shardings=[sharding for _, sharding in inputs],
        output_avals=[array for array, _ in outputs],
        output_shardings=[sharding for _, sharding in outputs],
        committed=True,
        name=signature.name,
        unordered_effects=[],
        ordered_effects=[],
        keepalive=[],
        host_callbacks=[],
        kept_var_idx=set(code.kept_inputs),
        mut=None,
        auto_spmd_lowering=False,
        xla_in_layouts=input_layouts,
        dispatch_in_layouts=[
            None if pxla.is_default_layout(layout, sharding, array) else layout
            for layout, (array, sharding) in zip(input_layouts, inputs, strict=True)
        ],
        xla_out_layouts=output_layouts,
        all_args_info=None,
        pgle_profiler=None,
    )
    donated = [group in (1, 2) for group, specs in enumerate(signature.arguments) for _ in specs]
    in_tree = tree_util.tree_structure((_places(signature.arguments), {}))
    arguments_info = tree_util.tree_unflatten(
        in_tree,
        [
            stages.ArgInfo(array, is_donated)
            for (array, _), is_donated in zip(arguments, donated, strict=True)
        ],
    )
    out_tree = tree_util.tree_structure(_places(signature.results))
    return stages.Compiled(unloaded.load(), [], arguments_info, out_tree, no_kwargs=True)


def _arrays(
    signature: ProgramSignature, groups: tuple[tuple[ArraySpec, ...], ...]
) -> list[tuple[core.ShapedArray, Sharding]]:
    return [
        (core.ShapedArray(tuple(spec.shape), jnp.dtype(spec.dtype)), sharding_of(spec, signature.mesh))
        for group in groups
        for spec in group
    ]


def _places(groups: tuple[tuple[ArraySpec, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Return a tree of the form of the groups."""
    return tuple(tuple(range(len(group))) for group in groups)


def code_facts(platform: Platform, mesh: Mesh) -> dict[str, str]:
    """Return what machine code for a mesh depends on besides the program: the facts of a `CodeStore`.

    They are the same for a device that is here and for one that is only compiled for. Where a mesh spans
    processes, each of them has code of its own.
    """
    flags = " ".join(os.environ.get(name, "") for name in _FLAG_VARIABLES).split()
    processes = {device.process_index for device in mesh.devices.flat}
    place = {} if len(processes) == 1 else {"process": f"{jax.process_index()} of {len(processes)}"}
    return place | {
        "platform": platform,
        "device_kind": mesh.devices.flat[0].device_kind,
        "num_devices": str(mesh.size),
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "runtime": ", ".join(_installed(_RUNTIMES[platform])),
        # The number of CPU devices that a process pretends to have decides nothing.
        "flags": " ".join(sorted(flag for flag in flags if "device_count" not in flag)),
        "cpu_features": _cpu_features() if platform == "cpu" else "",
    }


def _installed(packages: Sequence[str]) -> list[str]:
    found = []
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return found


def _cpu_features() -> str:
    """Return a hash of the CPU's features: code for one CPU may use instructions that another lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return machine.processor() or machine.machine()
    wanted = ("model name", "flags", "Features")
    features = "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    return hashlib.sha256(features.encode()).hexdigest()[:12]
