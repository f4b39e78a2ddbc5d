"""Loads a bundle directory into a `Runner`: places weights on the mesh and compiles the programs.

Runs on a loader thread, once per model, before the engine thread starts.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from safetensors import SafetensorError, safe_open

from vinfer.bundle.manifest import (
    MESH_AXES,
    ArraySpec,
    Manifest,
    Platform,
    ProgramSpec,
    StateSpec,
    WeightSpec,
    argument_specs,
)
from vinfer.engine.runner import ALL_ALLOWED, Compiled, Runner
from vinfer.errors import BundleError, DeviceError

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (phase, done, total)."""

COMPILER_OPTIONS: Mapping[Platform, dict[str, str | bool]] = {
    # For one row, XLA would multiply weights element by element, write the products, and then add them up:
    # three times the traffic.
    "cuda": {"xla_disable_hlo_passes": "dot-strength-reduction"}
}
_NUM_COMPILE_THREADS = 2
# Pages read from a memory-mapped file count toward this process's memory until the file is closed.
_MAX_MAPPED_BYTES = 256 << 20


class _Steps:
    """Counts finished pieces of work from several threads."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._lock = threading.Lock()
        self._num_done = 0
        self._total = total
        self._progress = progress
        progress("loading", 0, total)

    def done(self) -> None:
        with self._lock:
            self._num_done += 1
            self._progress("loading", self._num_done, self._total)


def load_runner(
    directory: Path,
    manifest: Manifest,
    *,
    devices: Sequence[jax.Device],
    num_pages: Sequence[int],
    dispatch_lock: threading.Lock,
    progress: Progress,
) -> Runner:
    """Place weights, KV cache and state on the mesh and compile every program.

    Args:
        num_pages: pages of the KV cache, by group, in each dp shard.

    Raises:
        BundleError: a weight or program file does not match the manifest.
        DeviceError: the devices have too little memory.
    """
    mesh = make_mesh(manifest, devices)
    images = manifest.images
    kv_specs = manifest.kv_specs(num_pages)
    image_weight_specs = () if images is None else images.weights
    steps = _Steps(len(manifest.weights) + len(image_weight_specs) + len(manifest.programs), progress)
    # XLA compiles without holding the interpreter lock, so weights are read in the meantime.
    with ThreadPoolExecutor(_NUM_COMPILE_THREADS, thread_name_prefix="compile") as pool:
        compiling = {
            program.shape: pool.submit(
                _compile, directory / "programs", program, manifest, kv_specs, mesh, steps
            )
            for program in manifest.programs
        }
        try:
            platform = manifest.platform
            weights = _place_weights(directory / "weights", manifest.weights, mesh, platform, steps)
            image_weights = _place_weights(directory / "weights", image_weight_specs, mesh, platform, steps)
            kv, state = _filled(kv_specs, mesh), _filled(manifest.state, mesh)
            features = _filled(() if images is None else (images.features,), mesh)
            jax.block_until_ready((weights, image_weights, kv, state, features))
            programs = {shape: future.result() for shape, future in compiling.items()}
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            raise _no_room(manifest, num_pages, error) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return Runner(
        weights=weights,
        kv=kv,
        state=state,
        programs=programs,
        inputs={program.shape: program.inputs for program in manifest.programs},
        num_slots=manifest.num_slots,
        rows_are_slots=manifest.rows_are_slots,
        open_masks=_open_masks(manifest.programs, mesh),
        dispatch_lock=dispatch_lock,
        image_weights=image_weights,
        image_features=features,
    )


def temporary_bytes(directory: Path, manifest: Manifest, *, devices: Sequence[jax.Device]) -> int:
    """Return the most memory that a program needs besides its arguments, on one device, as XLA says.

    It hardly depends on the number of pages, so that the smallest will do. Compiles the largest program of
    each kind that reads the KV cache.
    """
    mesh = make_mesh(manifest, devices)
    kv_specs = manifest.kv_specs(manifest.page_plan.least_pages())
    largest: dict[str, ProgramSpec] = {}
    for program in manifest.programs:
        shape = program.shape
        if shape.uses_kv and shape.uses_weights:
            known = largest.setdefault(shape.kind, program)
            if shape.rows * shape.length > known.shape.rows * known.shape.length:
                largest[shape.kind] = program
    steps = _Steps(len(largest), lambda *_: None)
    sizes = []
    for program in largest.values():
        compiled = _compile(directory / "programs", program, manifest, kv_specs, mesh, steps)
        analysis = compiled.memory_analysis()
        sizes.append(0 if analysis is None else analysis.temp_size_in_bytes)
    return max(sizes)


def make_mesh(manifest: Manifest, devices: Sequence[jax.Device]) -> Mesh:
    """Return the bundle's mesh over the first devices of this process."""
    sizes = [manifest.mesh[axis] for axis in MESH_AXES]
    grid = np.array(devices[: math.prod(sizes)]).reshape(sizes)
    return Mesh(grid, MESH_AXES)


def _sharding(spec: ArraySpec, mesh: Mesh) -> Sharding:
    if mesh.size == 1:
        # Equivalent to a NamedSharding, and much cheaper to trace and lower hundreds of times.
        return SingleDeviceSharding(mesh.devices.flat[0])
    return NamedSharding(mesh, PartitionSpec(*spec.axes))


def weight_placement(spec: ArraySpec, mesh: Mesh, platform: Platform) -> Sharding | Format:
    """Return how a weight lies on the devices: on a TPU in the order of its axes.

    A TPU's own choice is the order that pads least. It stores an embedding of 2,880 columns by columns, and
    each dispatch then copies all of it to read some rows.
    """
    sharding = _sharding(spec, mesh)
    if platform != "tpu" or len(spec.shape) < 2:
        return sharding
    return Format(Layout(major_to_minor=tuple(range(len(spec.shape)))), sharding)


def _place_weights(
    directory: Path, specs: Sequence[WeightSpec], mesh: Mesh, platform: Platform, steps: _Steps
) -> tuple[jax.Array, ...]:
    """Place each weight on the mesh, reading only the bytes that each device needs.

    Besides the arrays, this takes the memory of one weight plus `_MAX_MAPPED_BYTES`.
    """
    files: dict[str, Any] = {}
    num_mapped_bytes = 0
    arrays: list[jax.Array] = []
    for spec in specs:
        if num_mapped_bytes > _MAX_MAPPED_BYTES:
            files.clear()
            num_mapped_bytes = 0
        try:
            if spec.file not in files:
                files[spec.file] = safe_open(directory / spec.file, framework="numpy")
            stored = files[spec.file].get_slice(spec.name)
        except (OSError, SafetensorError) as error:
            raise BundleError(
                f"weights/{spec.file} is not readable ({error}): run vinfer precompile again"
            ) from None
        if tuple(stored.get_shape()) != spec.shape:
            raise BundleError(
                f"weights/{spec.file}: {spec.name} has shape {stored.get_shape()}, the manifest says "
                f"{list(spec.shape)}: run vinfer precompile again"
            )
        arrays.append(_place(stored, spec, mesh, platform))
        num_mapped_bytes += arrays[-1].nbytes
        steps.done()
    return tuple(arrays)


def _place(stored: Any, spec: WeightSpec, mesh: Mesh, platform: Platform) -> jax.Array:
    def read(index: tuple[slice, ...] | None) -> np.ndarray[Any, Any]:
        assert index is not None
        part: np.ndarray[Any, Any] = stored[index]
        return part

    array = jax.make_array_from_callback(spec.shape, _sharding(spec, mesh), read)
    placed = weight_placement(spec, mesh, platform)
    return jax.device_put(array, placed) if isinstance(placed, Format) else array


def _filled(specs: Sequence[StateSpec], mesh: Mesh) -> tuple[jax.Array, ...]:
    """Return arrays of initial values on the devices.

    A program creates them, not NumPy: on a CPU JAX borrows NumPy's memory, which cannot be donated, so the
    first dispatch would copy the whole cache.
    """

    def fill() -> tuple[jax.Array, ...]:
        return tuple(jnp.full(spec.shape, spec.initial, jnp.dtype(spec.dtype)) for spec in specs)

    shardings = tuple(_sharding(spec, mesh) for spec in specs)
    arrays: tuple[jax.Array, ...] = jax.jit(fill, out_shardings=shardings)()
    return arrays


def _open_masks(programs: Sequence[ProgramSpec], mesh: Mesh) -> dict[int, jax.Array]:
    """Place the grammar mask that allows everything on the devices, once for each number of rows."""
    specs = {
        spec.shape: spec for program in programs for spec in program.inputs if spec.name == "grammar_mask"
    }
    return {
        shape[0]: jax.device_put(np.full(shape, ALL_ALLOWED, np.uint32), _sharding(spec, mesh))
        for shape, spec in specs.items()
    }


def _compile(
    directory: Path,
    program: ProgramSpec,
    manifest: Manifest,
    kv_specs: Sequence[ArraySpec],
    mesh: Mesh,
    steps: _Steps,
) -> Compiled:
    """Compile one program, or load it from the compilation cache."""
    started = time.perf_counter()
    lowered = lower(directory, program, manifest, kv_specs, mesh)
    compiled: Compiled = lowered.compile(COMPILER_OPTIONS.get(manifest.platform))
    steps.done()
    logger.debug("program %s ready in %.2f s", program.shape.name, time.perf_counter() - started)
    return compiled


def lower(
    directory: Path, program: ProgramSpec, manifest: Manifest, kv_specs: Sequence[ArraySpec], mesh: Mesh
) -> jax.stages.Lowered:
    """Read one program from a bundle's `programs/` and prepare it for the compiler.

    Args:
        kv_specs: the arrays of the KV cache, with as many pages as there will be.

    Raises:
        BundleError: the file is not a program.
    """
    groups = argument_specs(
        program.shape,
        program.inputs,
        weights=manifest.weights,
        kv=kv_specs,
        state=manifest.state,
        images=manifest.images,
    )
    weights = tuple(weight_placement(spec, mesh, manifest.platform) for spec in groups[0])
    kv, state, inputs, outputs = (
        tuple(_sharding(spec, mesh) for spec in group) for group in (*groups[1:], program.outputs)
    )
    try:
        exported = export.deserialize(bytearray((directory / program.file).read_bytes()))
    except Exception as error:
        raise BundleError(f"programs/{program.file} is not a program: run vinfer precompile again") from error
    # Donated results keep the shardings of the arguments, so a second call finds the layout that the first
    # one left, and no program is ever compiled for another layout.
    jitted = jax.jit(
        exported.call,
        donate_argnums=(1, 2),
        in_shardings=(weights, kv, state, inputs),
        out_shardings=(kv, state, outputs),
    )
    return jitted.lower(
        *(
            tuple(jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype)) for spec in group)
            for group in groups
        )
    )


def _no_room(manifest: Manifest, num_pages: Sequence[int], error: Exception) -> DeviceError:
    sizes = manifest.num_bytes_per_device(num_pages).items()
    needs = ", ".join(f"{name} {num_bytes / 2**30:.2f} GiB" for name, num_bytes in sizes)
    return DeviceError(
        f"the devices have no room ({needs} per device): lower kv_cache or num_slots, "
        f"or raise mesh.tp ({str(error).splitlines()[0]})"
    )
