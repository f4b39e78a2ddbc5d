"""Builds bundles of `tiny.bundles` with one import of EasyDeL, two at a time.

    python -m tiny.build_together NAME...      run from tests/

Importing EasyDeL takes longer than to build a tiny bundle. This process imports it and starts no JAX, so
that it can fork one process for each bundle, with as many CPU devices as its mesh has. What the build child
does is done there by the same code. Bundles that are in `.build/` already are left alone.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny.bundles import build, is_built, model_config

import vinfer.launch.bundles
from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.export.bundle import build_bundle
from vinfer.compiler.plan import BuildPlan

_NUM_PROCESSES = 2
_WRITE_CHECKPOINTS = "import sys; from tiny.bundles import model_config; [*map(model_config, sys.argv[1:])]"


def run_build(plan: BuildPlan, *, directory: Path, progress: Callable[..., None], **_: Any) -> None:
    """Stand in for `vinfer.compiler.child.run_build`."""
    build_bundle(plan, open_checkpoint(resolve_source(plan.source)), directory, progress)


def build_in_a_fork(name: str) -> int:
    """Start to build a bundle in a process of its own; return its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        num_devices = math.prod(dict(model_config(name).mesh).values())
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={num_devices}"
        build(name)
        code = 0
    except BaseException:  # noqa: BLE001 - the test that wants this bundle builds it again, and shows why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Nothing of the parent's is to be ended a second time.
        os._exit(code)


def main(names: list[str]) -> None:
    missing = [name for name in names if not is_built(name)]
    if not missing:
        return
    # Torch draws and writes them meanwhile.
    with subprocess.Popen([sys.executable, "-c", _WRITE_CHECKPOINTS, *missing]) as writer:
        from vinfer.compiler.easydel.model import import_easydel

        import_easydel()
    assert writer.returncode == 0
    vinfer.launch.bundles.run_build = run_build
    num_running = 0
    for name in missing:
        if num_running == _NUM_PROCESSES:
            os.wait()
            num_running -= 1
        build_in_a_fork(name)
        num_running += 1
    while num_running:
        os.wait()
        num_running -= 1


if __name__ == "__main__":
    main(sys.argv[1:])
