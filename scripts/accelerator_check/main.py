"""The command line of scripts/accelerators: exports, compiles, reads and reports."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from accelerator_check.cases import MODELS, ROOT, Case, cut, published_config
from accelerator_check.targets import TARGETS, missing_packages, set_environment

REPORT = ROOT / "docs/reports/accelerators.md"


def main(description: str) -> int:
    """Return the exit code: 1 if a program failed, 2 if a compiler is missing."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS, metavar="CONFIG_NAME")
    parser.add_argument("--targets", default="v5e,v6e,h100", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--layers", default="2,4", help="two numbers of layers, to extrapolate from")
    parser.add_argument("--max-temp-mb", type=float, default=256, help="most temporary memory of a program")
    parser.add_argument("--row-len", type=int, default=1024, help="positions of each row of a decode step")
    parser.add_argument("--work", type=Path, help="keep programs and HLO here, and use what is there")
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    names = options.targets.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"unknown target {unknown[0]}: choose from {', '.join(TARGETS)}")
    packages = [
        package
        for platform in sorted({TARGETS[name].platform for name in names})
        for package in missing_packages(platform)
    ]
    if packages:
        print(
            f"a compiler is missing: run .venv/dev/bin/python -m pip install {' '.join(packages)}",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        return check(options, names, options.work or Path(scratch))


def check(options: argparse.Namespace, targets: list[str], work: Path) -> int:
    """Export and compile what `work` lacks, then write the report."""
    layers = [int(number) for number in options.layers.split(",")]
    for name in targets:
        target = TARGETS[name]
        for model in options.models:
            config = published_config(model)
            for num_layers in layers:
                case = Case(
                    model=model,
                    config=cut(config, num_layers),
                    num_layers=num_layers,
                    platform=target.platform,
                    tp=target.num_devices,
                )
                programs = work / "programs" / case.name
                if not (programs / "manifest.json").exists():
                    _run("accelerator_check.export", case.json, str(programs))
                _run("accelerator_check.compile", str(programs), name, str(work / name / case.name))
    return 0


def _run(module: str, *arguments: str) -> None:
    """Run a module in a process of its own; its log is shown only if it fails."""
    environment = set_environment(os.environ)
    if module.endswith("export"):
        # The program is split over devices that need not exist.
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    finished = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    if finished.returncode:
        print(finished.stderr[-4000:], file=sys.stderr)
        raise SystemExit(f"{module} ended with exit code {finished.returncode}")


if __name__ == "__main__":
    sys.exit(main(""))
