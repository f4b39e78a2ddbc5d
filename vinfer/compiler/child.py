"""Runs the build in a child process; this is the parent's side.

The child has JAX on the CPU with as many forced host devices as the mesh has. So it never takes the
accelerator from the server and leaves nothing in its memory. This side imports neither JAX nor EasyDeL.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from vinfer.child_process import how_it_ended
from vinfer.compiler.plan import BuildPlan
from vinfer.errors import BuildError, CheckpointError

Progress = Callable[[str, int, int], None]

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
    error: BuildError | CheckpointError | None = None
    events_fd, child_fd = os.pipe()
    with (
        os.fdopen(events_fd) as events,
        log_path.open("w") as log,
        tempfile.TemporaryDirectory(prefix="vinfer-build-") as scratch,
        subprocess.Popen(  # noqa: S603 - this interpreter and our own module
            [sys.executable, "-m", "vinfer.compiler", str(child_fd)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env=_environment(plan.num_devices, scratch),
            pass_fds=(child_fd,),
        ) as child,
    ):
        os.close(child_fd)
        assert child.stdin is not None
        # A child that has already exited is reported below, by its exit code.
        with contextlib.suppress(BrokenPipeError), child.stdin as stdin:
            json.dump(request, stdin)
        is_done = False
        for line in events:
            message = json.loads(line)
            if "error" in message:
                kind = CheckpointError if message["kind"] == "checkpoint" else BuildError
                error = kind(message["error"])
            elif "phase" in message:
                progress(message["phase"], message["done"], message["total"])
            else:
                is_done = message["done"]
        code = child.wait()
    if error is not None:
        raise error
    if code or not is_done:
        raise BuildError(f"the build of {plan.source} ended with {how_it_ended(code)}: see {log_path}")


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
