"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
Source = Annotated[Path, typer.Argument(metavar="CONFIG|DIR", help="YAML file, or a bundle directory.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as models[0].num_slots=8."),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="PLATFORM[-KIND]:COUNT",
        help="Devices to use, such as tpu:8 or tpu-v5e:4; cpu:4 emulates 4 on a CPU.",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, not text.")]
