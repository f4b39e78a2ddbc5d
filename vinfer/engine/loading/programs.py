"""The programs of a bundle on a mesh: loaded as machine code where it is stored, else compiled and stored.

Loader thread, and the threads that compile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from vinfer.bundle.manifest import Manifest, ProgramSpec
from vinfer.engine.loading.code_store import CodeStore, MachineCode
from vinfer.engine.loading.executables import (
    ProgramSignature,
    code_facts,
    compile_program,
    load_executable,
    machine_code,
)
from vinfer.engine.program import Compiled
from vinfer.errors import DeviceError

logger = logging.getLogger(__name__)


class LoadedPrograms:
    """Brings programs of a bundle onto a mesh: from the store if they are there, else compiled and stored.

    Args:
        roots: see `CodeStore`.
        num_pages: pages of the KV cache that the programs are for, by group, in each dp shard.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, mesh: Mesh, roots: Sequence[Path], num_pages: Sequence[int]
    ) -> None:
        self._directory = directory / "programs"
        self._roots = tuple(roots)
        self._manifest = manifest
        self._mesh = mesh
        self._kv_specs = manifest.kv_specs(num_pages)
        self._store = CodeStore(roots, code_facts(manifest.platform, mesh), num_pages)
        self._lock = threading.Lock()
        self._num_loaded = 0
        self._num_compiled = 0
        self._num_stored = 0

    def get(self, program: ProgramSpec) -> tuple[Compiled, bool]:
        """Return a program, ready to run, and whether it was loaded as machine code."""
        signature = self._signature(program)
        code = self._store.read(signature.name)
        compiled: Compiled | None = None
        if code is not None:
            try:
                compiled = load_executable(code, signature)
            except (jax.errors.JaxRuntimeError, ValueError) as error:
                reason = str(error).splitlines()[0]
                logger.warning("the stored code of %s does not load (%s); compiling", signature.name, reason)
        is_loaded = compiled is not None
        if compiled is None:
            compiled, _ = self._compile(signature)
        with self._lock:
            self._num_loaded += is_loaded
            self._num_compiled += not is_loaded
        return compiled, is_loaded

    def store(self, program: ProgramSpec) -> None:
        """Compile a program for devices that are not here, unless its code is stored.

        Raises:
            DeviceError: the code cannot be stored.
        """
        signature = self._signature(program)
        if self._store.read(signature.name) is None:
            code = machine_code(compile_program(self._directory, signature))
            if code is None or not self._store.write(signature.name, code):
                raise DeviceError(
                    f"machine code of {signature.name} cannot be stored in "
                    f"{' or '.join(str(root) for root in self._roots)}: make it writable"
                )

    def temporary_bytes(self, program: ProgramSpec) -> int:
        """Return the memory that a program needs besides its arguments, on one device, as XLA says."""
        signature = self._signature(program)
        code = self._store.read(signature.name)
        if code is None:
            _, code = self._compile(signature)
        return 0 if code is None else code.temporary_bytes

    def _signature(self, program: ProgramSpec) -> ProgramSignature:
        if self._manifest.platform == "cpu" and self._mesh.size == 1:
            # On the threads that compile, while weights are read. Other platforms need no LLVM.
            from vinfer.cpu_kernel.calls import register_all

            register_all(self._manifest.dtype)
        return ProgramSignature(program, self._manifest, self._kv_specs, self._mesh)

    def _compile(self, signature: ProgramSignature) -> tuple[Compiled, MachineCode | None]:
        compiled = compile_program(self._directory, signature)
        code = machine_code(compiled)
        if code is not None and self._store.write(signature.name, code):
            with self._lock:
                self._num_stored += 1
        return compiled, code

    def log_summary(self) -> None:
        """Log how many programs were loaded and compiled, and why not all of them were loaded."""
        other = self._store.why_none_fits() if self._num_loaded == 0 else None
        if other is not None:
            logger.info("the stored machine code is for another machine: %s", other)
        logger.info(
            "%d programs ready, %d of them loaded as machine code",
            self._num_loaded + self._num_compiled,
            self._num_loaded,
        )
        if self._num_stored < self._num_compiled:
            logger.warning(
                "machine code cannot be stored in %s; every start compiles anew: make one of them writable",
                " or ".join(str(root) for root in self._roots),
            )


def temporary_bytes(directory: Path, manifest: Manifest, mesh: Mesh, *, code_roots: Sequence[Path]) -> int:
    """Return the most memory that a program needs besides its arguments, on one device, as XLA says.

    It hardly depends on the number of pages, so that the smallest will do. Compiles the largest program of
    each kind that reads the KV cache, unless their code is stored.
    """
    programs = LoadedPrograms(directory, manifest, mesh, code_roots, manifest.page_plan.least_pages())
    return max(programs.temporary_bytes(program) for program in largest_programs(manifest))


def largest_programs(manifest: Manifest) -> list[ProgramSpec]:
    """Return the largest program of each kind that reads the KV cache."""
    largest: dict[str, ProgramSpec] = {}
    for program in manifest.programs:
        shape = program.shape
        if shape.uses_kv and shape.uses_weights:
            known = largest.setdefault(shape.kind, program)
            if shape.rows * shape.length > known.shape.rows * known.shape.length:
                largest[shape.kind] = program
    return list(largest.values())


def stored_page_counts(manifest: Manifest, mesh: Mesh, code_roots: Sequence[Path]) -> list[tuple[int, ...]]:
    """Return the numbers of pages, by group, that machine code for these devices is stored for."""
    return CodeStore(code_roots, code_facts(manifest.platform, mesh), ()).page_counts()
