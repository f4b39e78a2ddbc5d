"""Runs the build in a child process; this is the parent's side.

The child has JAX on the CPU with as many forced host devices as the mesh has. So it never takes the
accelerator from the server and leaves nothing in its memory. This side imports neither JAX nor EasyDeL.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
from pathlib import Path

from vinfer.bundle.progress import Progress
from vinfer.child_process import how_it_ended, running_child
from vinfer.compiler.plan import BuildPlan
from vinfer.errors import BuildError

_FORCED_DEVICES = re.compile(r"--xla_force_host_platform_device_count=\d+")


def run_build(
    plan: BuildPlan, *, revision: str | None, directory: Path, log_path: Path, progress: Progress
) -> None:
    """Write a bundle into an empty directory; returns when the child has exited.

    Args:
        log_path: receives all output of the child and its libraries.

    Raises:
        CheckpointError, BuildError: as reported by the child, with the path of its log.
    """
    request = {"plan": dataclasses.asdict(plan), "revision": revision, "directory": str(directory)}
    request["plan"]["programs"] = [shape.model_dump() for shape in plan.programs]  # type: ignore[index]
    is_done = False
    with (
        tempfile.TemporaryDirectory(prefix="vinfer-build-") as scratch,
        running_child(
            "vinfer.compiler",
            environment=_environment(plan.num_devices, scratch),
            log=log_path,
            failure=BuildError,
        ) as child,
    ):
        child.send(request)
        while (message := child.receive()) is not None:
            if "phase" in message:
                progress(message["phase"], message["done"], message["total"])
            else:
                is_done = message["done"]
        how = child.end()
    if how or not is_done:
        raise BuildError(f"the build of {plan.source} ended with {how or how_it_ended(0)}: see {log_path}")


def _environment(num_devices: int, scratch: str) -> dict[str, str]:
    flags = _FORCED_DEVICES.sub("", os.environ.get("XLA_FLAGS", ""))
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={num_devices}".strip(),
        "ENABLE_DISTRIBUTED_INIT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # EasyDeL points JAX's cache there when it is imported; nothing in it is kept.
        "COMPILE_FUNC_DIR": scratch,
    }
