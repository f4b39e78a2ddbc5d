"""Loads a bundle directory into a `LoadedModel`: places weights on the mesh and compiles the programs.

Runs on a loader thread, once per model, before the engine thread starts.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vinfer.bundle.manifest import ArraySpec, Manifest, ProgramSpec, StateSpec, WeightSpec
from vinfer.bundle.progress import Progress
from vinfer.engine.loading.loaded_model import ALL_ALLOWED, OPEN_MASK_INPUT, Announce, LoadedModel
from vinfer.engine.loading.mesh import make_mesh, sharding_of, weight_placement
from vinfer.engine.loading.programs import LoadedPrograms
from vinfer.engine.loading.weight_files import WeightFiles, read_in
from vinfer.engine.program import Program
from vinfer.errors import DeviceError

logger = logging.getLogger(__name__)

_NUM_COMPILE_THREADS = 2
# Besides the arrays, loading takes memory for so many bytes of the files, and one weight.
_MAX_READ_BYTES = 256 << 20


class _Steps:
    """Counts bytes of weights that are placed, and then programs, which other threads prepare meanwhile."""

    def __init__(self, num_bytes: int, num_programs: int, progress: Progress) -> None:
        self._lock = threading.Lock()
        self._num_bytes, self._num_programs = num_bytes, num_programs
        self._placed_bytes = self._num_prepared = 0
        self._progress = progress
        self._report()

    def placed(self, num_bytes: int) -> None:
        with self._lock:
            self._placed_bytes += num_bytes
            self._report()

    def all_placed(self) -> None:
        """Report programs from now on."""
        self.placed(self._num_bytes - self._placed_bytes)

    def prepared(self) -> int:
        """Count a program, and return how many there are now."""
        with self._lock:
            self._num_prepared += 1
            self._report()
            return self._num_prepared

    def _report(self) -> None:
        if self._placed_bytes < self._num_bytes:
            self._progress("loading weights", self._placed_bytes, self._num_bytes)
        else:
            self._progress("preparing programs", self._num_prepared, self._num_programs)


def load_model(
    directory: Path,
    manifest: Manifest,
    *,
    devices: Sequence[jax.Device],
    num_pages: Sequence[int],
    code_roots: Sequence[Path],
    dispatch_lock: threading.Lock,
    progress: Progress,
    announce: Announce | None = None,
) -> LoadedModel:
    """Place weights, KV cache and state on the mesh and compile every program.

    Args:
        num_pages: pages of the KV cache, by group, in each dp shard.
        code_roots: where machine code of the programs is kept; see `CodeStore`.
        announce: see `LoadedModel`.

    Raises:
        BundleError: a weight or program file does not match the manifest.
        DeviceError: the devices have too little memory.
    """
    mesh = make_mesh(manifest, devices)
    images = manifest.images
    kv_specs = manifest.kv_specs(num_pages)
    image_weight_specs = () if images is None else images.weights
    sizes = manifest.num_bytes_per_device(num_pages)
    steps = _Steps(sizes["weights"] + sizes.get("image_weights", 0), len(manifest.programs), progress)
    code = LoadedPrograms(directory, manifest, mesh, code_roots, num_pages)

    def program_ready(spec: ProgramSpec) -> Program:
        started = time.monotonic()
        compiled, is_loaded = code.get(spec)
        number = steps.prepared()
        if not is_loaded:
            logger.info(
                "program %d of %d, %s: compiled in %.1f s",
                number,
                len(manifest.programs),
                spec.shape.name,
                time.monotonic() - started,
            )
        return Program(spec, compiled)

    # XLA compiles without holding the interpreter lock, so weights are read in the meantime.
    with ThreadPoolExecutor(_NUM_COMPILE_THREADS, thread_name_prefix="compile") as pool:
        compiling = [
            # In this thread's context, so that its compiles count as those of loading.
            pool.submit(contextvars.copy_context().run, program_ready, spec)
            for spec in manifest.programs
        ]
        try:
            weights = _place_weights(directory / "weights", manifest.weights, mesh, steps)
            image_weights = _place_weights(directory / "weights", image_weight_specs, mesh, steps)
            steps.all_placed()
            kv, state = _filled(kv_specs, mesh), _filled(manifest.state, mesh)
            features = _filled(() if images is None else (images.features,), mesh)
            jax.block_until_ready((weights, image_weights, kv, state, features))
            programs = [future.result() for future in compiling]
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            raise _no_room(manifest, num_pages, error) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    code.log_summary()
    return LoadedModel(
        weights=weights,
        kv=kv,
        state=state,
        programs=programs,
        open_masks=_open_masks(manifest.programs, mesh),
        dispatch_lock=dispatch_lock,
        image_weights=image_weights,
        image_features=features,
        announce=announce,
    )


def _place_weights(
    directory: Path, specs: Sequence[WeightSpec], mesh: Mesh, steps: _Steps
) -> tuple[jax.Array, ...]:
    """Place each weight on the mesh, reading only the bytes that each device needs."""
    files = WeightFiles(directory)
    arrays: list[jax.Array] = []
    for spec in specs:
        if files.num_read_bytes > _MAX_READ_BYTES:
            # Copies that have not ended keep their file mapped.
            jax.block_until_ready(arrays)
            files.close()
        arrays.append(_place(files.array(spec), spec, mesh))
        steps.placed(spec.num_bytes_per_device(mesh.shape))
    return tuple(arrays)


def _place(stored: np.ndarray[Any, Any], spec: WeightSpec, mesh: Mesh) -> jax.Array:
    def read(index: tuple[slice, ...] | None) -> np.ndarray[Any, Any]:
        assert index is not None
        part: np.ndarray[Any, Any] = stored[index]
        read_in(part)
        return part

    # Not device_put: where a mesh spans processes, that compares all of a weight between them.
    return jax.make_array_from_callback(spec.shape, weight_placement(spec, mesh), read)


def _filled(specs: Sequence[StateSpec], mesh: Mesh) -> tuple[jax.Array, ...]:
    """Return arrays of initial values on the devices.

    A program creates them, not NumPy: on a CPU JAX borrows NumPy's memory, which cannot be donated, so the
    first dispatch would copy the whole cache.
    """

    def fill() -> tuple[jax.Array, ...]:
        return tuple(jnp.full(spec.shape, spec.initial, jnp.dtype(spec.dtype)) for spec in specs)

    shardings = tuple(sharding_of(spec, mesh) for spec in specs)
    arrays: tuple[jax.Array, ...] = jax.jit(fill, out_shardings=shardings)()
    return arrays


def _open_masks(programs: Sequence[ProgramSpec], mesh: Mesh) -> dict[tuple[int, ...], jax.Array]:
    """Place the grammar mask that allows everything on the devices, once for each shape."""
    specs = {
        spec.shape: spec for program in programs for spec in program.inputs if spec.name == OPEN_MASK_INPUT
    }

    def place(shape: tuple[int, ...], spec: ArraySpec) -> jax.Array:
        mask = np.full(shape, ALL_ALLOWED, np.uint32)
        return jax.make_array_from_callback(shape, sharding_of(spec, mesh), lambda index: mask[index])

    return {shape: place(shape, spec) for shape, spec in specs.items()}


def _no_room(manifest: Manifest, num_pages: Sequence[int], error: Exception) -> DeviceError:
    sizes = manifest.num_bytes_per_device(num_pages).items()
    needs = ", ".join(f"{name} {num_bytes / 2**30:.2f} GiB" for name, num_bytes in sizes)
    return DeviceError(
        f"the devices have no room ({needs} per device): lower kv_cache or num_slots, "
        f"or raise mesh.tp ({str(error).splitlines()[0]})"
    )
