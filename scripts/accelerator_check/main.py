"""The command line of scripts/accelerators: exports, compiles, reads and reports."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from accelerator_check.cases import MODELS, ROOT, Case, cut, published_config
from accelerator_check.read import Figures, read_figures
from accelerator_check.report import FAIL, Row, page, verdict
from accelerator_check.targets import TARGETS, Target, compiling_environment, missing_packages
from vinfer.bundle.directory import read_manifest

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
    rows: list[Row] = []
    for name in targets:
        for model in options.models:
            rows += check_model(name, model, options, work)
            # After each model, so that a run that is ended leaves what it has found.
            options.report.write_text(_page(rows, options))
    max_temp_bytes = options.max_temp_mb * 1e6
    verdicts = [verdict(row, max_temp_bytes) for row in rows]
    for row, words in zip(rows, verdicts, strict=True):
        print(f"{words:7} {row.target} {row.model} {row.program}")
    print(f"wrote {options.report}")
    return 1 if FAIL in verdicts else 0


def check_model(name: str, model: str, options: argparse.Namespace, work: Path) -> list[Row]:
    """Return one row for each program of a model on a target."""
    target, config = TARGETS[name], published_config(model)
    cases = [
        Case(
            model=model,
            config=cut(config, num_layers),
            num_layers=num_layers,
            platform=target.platform,
            tp=target.num_devices,
        )
        for num_layers in (int(number) for number in options.layers.split(","))
    ]
    lacking = [case for case in cases if not (work / "programs" / case.name / "manifest.json").exists()]
    if lacking:
        _run("export", target, str(work / "programs"), *(case.json for case in lacking))
    found: dict[str, dict[int, Figures]] = {}
    for case in cases:
        programs, results = work / "programs" / case.name, work / name / case.name
        _run("compile", target, str(programs), name, str(results))
        manifest = read_manifest(programs)
        block_len = int((programs / "block_len").read_text())
        for program in manifest.programs:
            shape = program.shape
            figures = read_figures(
                results / f"{shape.name}.json", shape, manifest, block_len, options.row_len
            )
            found.setdefault(shape.name, {})[case.num_layers] = figures
    return [
        Row(name, model, program, by_layers, num_layers=config["num_hidden_layers"])
        for program, by_layers in found.items()
    ]


def _page(rows: Sequence[Row], options: argparse.Namespace) -> str:
    packages = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in packages
        if any(package == found.name for found in importlib.metadata.distributions())
    )
    return page(
        rows,
        max_temp_bytes=options.max_temp_mb * 1e6,
        row_len=options.row_len,
        versions=versions,
        setup="All programs are for bfloat16, 32 slots and 8,192 positions, with as many pages as the slots "
        "can use. A target with `-4` has four chips and `tp: 4`.",
    )


def _run(module: str, target: Target, *arguments: str) -> None:
    """Run a module in a process of its own; its log is shown only if it fails."""
    environment = compiling_environment(os.environ)
    if module == "export":
        # The program is split over devices that need not exist.
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={target.num_devices}"
    finished = subprocess.run(
        [sys.executable, "-m", f"accelerator_check.{module}", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if finished.returncode:
        print(finished.stderr[-4000:], file=sys.stderr)
        raise SystemExit(f"accelerator_check.{module} ended with exit code {finished.returncode}")


if __name__ == "__main__":
    sys.exit(main(__doc__))
