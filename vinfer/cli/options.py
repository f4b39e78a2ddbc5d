"""Arguments and options that several commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

HELP_STYLE: Literal["rich"] | None = "rich" if sys.stdout.isatty() else None
"""Panels on a terminal; in a pipe, plain lines, for which rich need not be imported."""
CONFIGURATION, DEVICES, OUTPUT = "Configuration", "Devices", "Output"
"""Panels of options that several commands have."""

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")]
Source = Annotated[Path, typer.Argument(metavar="CONFIG|DIR", help="YAML file, or a bundle directory.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key, such as models[0].num_slots=8.",
        rich_help_panel=CONFIGURATION,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="PLATFORM[-KIND]:COUNT",
        help="Devices to use, such as tpu:8 or tpu-v5e:4; cpu:4 emulates 4 on a CPU.",
        rich_help_panel=DEVICES,
    ),
]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, not text.", rich_help_panel=OUTPUT)
]


def show(found: Any, text: Callable[[], None], *, as_json: bool) -> None:
    """Print what was found as one line of JSON, or as text."""
    if as_json:
        typer.echo(json.dumps(found, allow_nan=False))
    else:
        text()
