"""The build child: `python -m vinfer.compiler FD`; see `vinfer.child_process`.

Runs in its own process, with JAX on the CPU and as many forced host devices as the mesh has; exits when
the bundle is written. It is sent one request, and reports progress and then that it is done.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vinfer.child_process import Say, child_main
from vinfer.errors import BuildError


def _build(say: Say) -> None:
    from vinfer.bundle.programs import ProgramShape
    from vinfer.checkpoint.checkpoint import open_checkpoint
    from vinfer.checkpoint.source import resolve_source
    from vinfer.compiler.export.bundle import build_bundle
    from vinfer.compiler.plan import BuildPlan

    def progress(phase: str, done: int, total: int) -> None:
        say(phase=phase, done=done, total=total)

    request = json.loads(sys.stdin.readline())
    programs = tuple(ProgramShape.model_validate(shape) for shape in request["plan"]["programs"])
    plan = BuildPlan(**{**request["plan"], "programs": programs})
    progress("reading checkpoint", 0, 1)
    checkpoint = open_checkpoint(resolve_source(plan.source, revision=request["revision"]))
    build_bundle(plan, checkpoint, Path(request["directory"]), progress)
    say(done=True)


if __name__ == "__main__":
    sys.exit(child_main(_build, failure=BuildError))
