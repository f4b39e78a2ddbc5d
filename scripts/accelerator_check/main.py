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

from accelerator_check.cases import (
    DRAFT_TOKENS,
    KINDS,
    MODELS,
    ROOT,
    Case,
    Choice,
    cut,
    published_config,
    sizes,
)
from accelerator_check.read import Figures, read_figures
from accelerator_check.report import FAIL, Row, page, verdict
from accelerator_check.targets import MAX_TRAFFIC, TP, compiling_environment
from vinfer.bundle.directory import read_manifest
from vinfer.bundle.manifest import MESH_AXES
from vinfer.checkpoint.normalise import normalise
from vinfer.compiler.plan import check_heads
from vinfer.errors import ConfigError
from vinfer.launch.device_kinds import KINDS as DEVICES
from vinfer.launch.device_kinds import missing_packages
from vinfer.launch.kv_memory import ACCELERATOR_FRACTION

REPORT = ROOT / "docs/reports/accelerators.md"


def main(description: str) -> int:
    """Return the exit code: 1 if a program failed, 2 if a compiler is missing."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=MODELS, metavar="CONFIG_NAME")
    parser.add_argument("--targets", default=",".join(DEVICES), help=f"of {', '.join(DEVICES)}")
    parser.add_argument(
        "--tp", default=",".join(map(str, TP)), help="devices that share a model; the first is checked whole"
    )
    parser.add_argument(
        "--full-depth", action=argparse.BooleanOptionalAction, default=True, help="also all layers at once"
    )
    parser.add_argument("--max-temp-mb", type=float, default=256, help="most temporary memory of a program")
    parser.add_argument("--row-len", type=int, default=1024, help="positions of each row of a decode step")
    parser.add_argument("--work", type=Path, help="keep programs and HLO here, and use what is there")
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    names = options.targets.split(",")
    options.tp = [int(number) for number in options.tp.split(",")]
    if unknown := [name for name in names if name not in DEVICES]:
        parser.error(f"unknown target {unknown[0]}: choose from {', '.join(DEVICES)}")
    if unknown := [str(tp) for tp in options.tp if tp not in TP]:
        parser.error(f"no machine with {unknown[0]} devices: choose from {', '.join(map(str, TP))}")
    packages = [
        package
        for platform in sorted({DEVICES[name].platform for name in names})
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
            rows += ModelCheck(name, model, options, work).rows()
            # After each model, so that a run that is ended leaves what it has found.
            options.report.write_text(_page(rows, options))
    max_temp_bytes = options.max_temp_mb * 1e6
    verdicts = [verdict(row, max_temp_bytes) for row in rows]
    for row, words in zip(rows, verdicts, strict=True):
        print(f"{words:7} {row.target} {row.model} {row.program} tp {row.tp}")
    print(f"wrote {options.report}")
    return 1 if FAIL in verdicts else 0


class ModelCheck:
    """One model on one target: what is compiled, and what is known of it then."""

    def __init__(self, name: str, model: str, options: argparse.Namespace, work: Path) -> None:
        self._name, self._model, self._options, self._work = name, model, options, work
        self._target = DEVICES[name]
        self._config = published_config(model)
        self._facts = normalise(self._config).facts
        self._found: dict[tuple[int, str], dict[int, Figures]] = {}

    def rows(self) -> list[Row]:
        """Return one row for each program and number of devices."""
        legal = [tp for tp in self._options.tp if self._is_legal(tp)]
        for tp in legal:
            self._compile(tp, sizes(self._facts.windows), "all" if tp == legal[0] else "largest decode")
        holds_all = next((tp for tp in legal if self._whole_bytes(tp) <= self._most_bytes()), None)
        if self._options.full_depth and holds_all is not None:
            self._compile(holds_all, (self._num_layers,), "largest decode")
        return [
            Row(
                self._name,
                self._model,
                program,
                by_layers,
                self._num_layers,
                tp,
                MAX_TRAFFIC[self._target.platform],
            )
            for (tp, program), by_layers in self._found.items()
        ]

    @property
    def _num_layers(self) -> int:
        return len(self._facts.windows)

    def _is_legal(self, tp: int) -> bool:
        try:
            check_heads({**dict.fromkeys(MESH_AXES, 1), "tp": tp}, self._facts, where=self._model)
        except ConfigError:
            return False
        return True

    def _most_bytes(self) -> int:
        return int(ACCELERATOR_FRACTION * self._target.memory_bytes - self._options.max_temp_mb * 1e6)

    def _whole_bytes(self, tp: int) -> float:
        """Return what the whole model and all pages take of one device, extended from a few layers."""
        few, many = sizes(self._facts.windows)
        choice: Choice = "all" if tp == self._options.tp[0] else "largest decode"
        taken = []
        for num_layers in (few, many):
            manifest = read_manifest(self._programs(self._case(tp, num_layers, choice)))
            taken.append(sum(manifest.num_bytes_per_device(manifest.page_plan.most_pages()).values()))
        return taken[1] + (taken[1] - taken[0]) / (many - few) * (self._num_layers - many)

    def _case(self, tp: int, num_layers: int, choice: Choice) -> Case:
        config = cut(self._config, num_layers)
        draft_tokens = DRAFT_TOKENS.get(self._model, 0)
        return Case(self._model, config, num_layers, self._target.platform, tp, choice, draft_tokens)

    def _programs(self, case: Case) -> Path:
        return self._work / "programs" / case.name

    def _compile(self, tp: int, numbers_of_layers: Sequence[int], choice: Choice) -> None:
        cases = [self._case(tp, num_layers, choice) for num_layers in numbers_of_layers]
        lacking = [case for case in cases if not (self._programs(case) / "manifest.json").exists()]
        if lacking:
            _run("export", tp, str(self._work / "programs"), *(case.json for case in lacking))
        for case in cases:
            programs, results = self._programs(case), self._work / self._name / case.name
            _run("compile", tp, str(programs), self._name, str(results), *KINDS[choice])
            manifest = read_manifest(programs)
            block_len = int((programs / "block_len").read_text())
            shapes = (program.shape for program in manifest.programs)
            for shape in (shape for shape in shapes if shape.kind in KINDS[choice]):
                record = results / f"{shape.name}.json"
                figures = read_figures(record, shape, manifest, block_len, self._options.row_len)
                self._found.setdefault((tp, shape.name), {})[case.num_layers] = figures


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
        "can use.",
    )


def _run(module: str, num_devices: int, *arguments: str) -> None:
    """Run a module in a process of its own; its log is shown only if it fails."""
    environment = compiling_environment(os.environ)
    if module == "export":
        # The program is split over devices that need not exist.
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={num_devices}"
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
