"""The cases of scripts/plan-figures: plans each config, builds it, measures it, and prints a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmark.loading import write

GIB = 1 << 30
MAX_ERROR = 0.1
SMOLLM2 = Path(__file__).parents[2] / "configs/smollm2.yaml"
LAYERS = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """One config: a file, whose bundle is in the default cache, or a model; `devices` as of `--devices`."""

    title: str
    model: Path | dict[str, Any]
    devices: str = "cpu:1"

    @property
    def num_devices(self) -> int:
        return int(self.devices.partition(":")[2])


def cases(checkpoint: Path) -> list[Case]:
    """Return the four configs; `checkpoint` is the random Llama."""
    random = {
        "source": str(checkpoint),
        "dtype": "bfloat16",
        "num_slots": 4,
        "max_model_len": 2048,
        "precompile": [{"batch_size": 1, "prefill_length": 64}],
    }
    return [
        Case("configs/smollm2.yaml", SMOLLM2),
        Case(f"random Llama, {LAYERS} layers, bfloat16", random),
        Case(
            "the same in float32, 1 GiB of KV cache",
            {**random, "dtype": "float32", "num_slots": 64, "kv_cache": {"bytes": GIB}},
        ),
        Case(
            "the first Llama on two emulated devices, fsdp=2",
            {**random, "mesh": {"fsdp": 2, "tp": 1}},
            "cpu:2",
        ),
    ]


def main(doc: str | None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page here too")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), help="scratch")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="plan-figures-", dir=arguments.directory) as scratch:
        write(Path(scratch), LAYERS)
        for number, case in enumerate(cases(Path(scratch) / "checkpoint")):
            rows.append(_row(case, Path(scratch) / str(number)))
            print(rows[-1], file=sys.stderr, flush=True)
    text = page(rows)
    print(text, end="")
    if arguments.write:
        arguments.write.write_text(text)
    return 0 if all(abs(row["error"]) <= MAX_ERROR for row in rows) else 1


def _row(case: Case, directory: Path) -> dict[str, Any]:
    """Plan, build and measure one config."""
    directory.mkdir()
    config = case.model if isinstance(case.model, Path) else directory / "config.yaml"
    if isinstance(case.model, dict):
        model = {"name": "model", "verify": "off", **case.model}
        config.write_text(json.dumps({"models": [model], "cache_dir": str(directory / "cache")}))
    # Of a cache without the bundle: an estimate from the checkpoint.
    empty = ("--set", f"cache_dir={directory / 'empty'}")
    planned = _run("-m", "vinfer", "plan", config, "--devices", case.devices, "--json", *empty)
    [plan] = json.loads(planned)["models"]
    assert plan["bundle"] is None
    _run("-m", "vinfer", "precompile", config, "--devices", case.devices)
    measured = json.loads(_run(Path(__file__).with_name("measure.py"), config, case.devices).splitlines()[-1])
    sizes = {name: size or 0 for name, size in plan["bytes"].items()}
    num_bytes = sum(sizes.values())
    added = measured["added_bytes"] / case.num_devices
    return {
        "title": case.title,
        "planned": num_bytes,
        "arrays": measured["array_bytes"],
        "added": added,
        "error": num_bytes / added - 1,
        **{name: sizes[name] for name in ("weights", "kv_cache")},
    }


def _run(*command: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *sys.path])}
    done = subprocess.run(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return done.stdout


def page(rows: list[dict[str, Any]]) -> str:
    """Return the report."""
    lines = [
        "# Plans",
        "",
        "This page compares what `vinfer plan` says before a build with what a process then takes.",
        "",
        "`scripts/plan-figures` writes it. Sizes are GiB of one device.",
        "*Arrays* are those of JAX after the load.",
        "*Process* is the anonymous memory that the load added, with machine code.",
        "",
        "| config | weights | KV cache | planned | arrays | process | plan against process |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes = [f"{row[name] / GIB:.3f}" for name in ("weights", "kv_cache", "planned", "arrays", "added")]
        lines.append(f"| {row['title']} | {' | '.join(sizes)} | {100 * row['error']:+.1f} % |")
    return "\n".join([*lines, ""])
