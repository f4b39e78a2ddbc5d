"""The build child: `python -m vinfer.compiler FD < request.json`.

Runs in its own process, with JAX on the CPU and as many forced host devices as the mesh has; exits when
the bundle is written. The pipe FD carries one JSON document per line: progress, then the result. Standard
output and error are left to the libraries, which may print from the first import on.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from vinfer.child_process import end_with_parent
from vinfer.errors import BuildError, CheckpointError, VinferError


def main() -> int:
    """Build one bundle; return the exit code."""
    end_with_parent()
    events_fd = int(sys.argv[1])
    # Programs that libraries start must not hold the pipe open.
    os.set_inheritable(events_fd, False)
    events = os.fdopen(events_fd, "w", buffering=1)
    try:
        _build(json.load(sys.stdin), events)
    except VinferError as error:
        kind = "checkpoint" if isinstance(error, CheckpointError) else "build"
        _say(events, error=error.message, kind=kind)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the parent shows one line; the log has the rest
        traceback.print_exc()
        _say(events, error=f"{type(error).__name__}: {error}", kind="build")
        return BuildError.exit_code
    _say(events, done=True)
    return 0


def _build(request: dict[str, Any], events: TextIO) -> None:
    from vinfer.bundle.programs import ProgramShape
    from vinfer.checkpoint.checkpoint import open_checkpoint
    from vinfer.checkpoint.source import resolve_source
    from vinfer.compiler.export.bundle import build_bundle
    from vinfer.compiler.plan import BuildPlan

    def progress(phase: str, done: int, total: int) -> None:
        _say(events, phase=phase, done=done, total=total)

    plan = BuildPlan(
        **{
            **request["plan"],
            "programs": tuple(ProgramShape.model_validate(shape) for shape in request["plan"]["programs"]),
        }
    )
    progress("reading checkpoint", 0, 1)
    checkpoint = open_checkpoint(resolve_source(plan.source, revision=request["revision"]))
    build_bundle(plan, checkpoint, Path(request["directory"]), progress)


def _say(events: TextIO, **message: object) -> None:
    events.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    sys.exit(main())
