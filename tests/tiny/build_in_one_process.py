"""Builds several bundles of `tiny.bundles` in one process, which imports EasyDeL once.

    python -m tiny.build_in_one_process NAME...

Does the work of the build child with the same code; only the process is shared. Skips bundles that are
already in `.build/`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny.bundles import build

import vinfer.launch.bundles
from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.export.bundle import build_bundle
from vinfer.compiler.plan import BuildPlan


def run_build(plan: BuildPlan, *, directory: Path, progress: Callable[..., None], **_: Any) -> None:
    """Stand in for `vinfer.compiler.child.run_build`."""
    build_bundle(plan, open_checkpoint(resolve_source(plan.source)), directory, progress)


if __name__ == "__main__":
    vinfer.launch.bundles.run_build = run_build
    for name in sys.argv[1:]:
        try:
            build(name)
        except Exception:  # noqa: BLE001 - the test that needs this bundle rebuilds it and shows the error
            traceback.print_exc()
