"""Python imports this when a server with this folder in PYTHONPATH starts.

On SIGUSR2 the process writes the names of its modules, one per line, to the file that MODULES_FILE names.
With FAILPOINTS_FILE, it fails where a test asks for it; see `failpoints`.
"""

import os
import signal
import sys
from pathlib import Path


def _write_modules(signum: int, frame: object) -> None:
    target = Path(os.environ["MODULES_FILE"])
    scratch = target.with_suffix(".part")
    scratch.write_text("\n".join(sorted(sys.modules)))
    scratch.rename(target)


if "MODULES_FILE" in os.environ:
    signal.signal(signal.SIGUSR2, _write_modules)
if "FAILPOINTS_FILE" in os.environ:
    import failpoints

    failpoints.install(Path(os.environ["FAILPOINTS_FILE"]))
