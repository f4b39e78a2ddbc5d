"""`vinfer config`: YAML files; only `init` looks at devices."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vinfer.cli.options import HELP_STYLE, AsJson, ConfigPath, Devices, Overrides

config_app = typer.Typer(
    help="Example: vinfer config check configs/smollm2.yaml\n\nWrite and check configuration files.",
    no_args_is_help=True,
    rich_markup_mode=HELP_STYLE,
)


@config_app.command(short_help="Write a commented YAML file for a model.")
def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file to write.")] = Path("vinfer.yaml"),
    source: Annotated[
        str | None, typer.Option(help="Hub id, directory or .gguf file; asked for if omitted.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the API.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the server.")] = None,
    devices: Devices = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Example: vinfer config init llama.yaml --source meta-llama/Llama-3.2-1B-Instruct

    Write a commented YAML file for a model and the devices of this machine, and print its path.

    In a terminal, what no option says is asked for.
    """
    from vinfer.launch.devices import planned_target, target_devices
    from vinfer.launch.new_config import ask, write_config
    from vinfer.launch.terminal import configure_logging

    configure_logging("warning")
    wanted = target_devices(devices)
    answers = ask(_question if sys.stdin.isatty() else None, source=source, name=name, port=port)
    write_config(path, answers, planned_target(wanted), replaces=force)
    typer.echo(path)


def _question(text: str) -> str:
    sys.stderr.write(text)
    sys.stderr.flush()
    return sys.stdin.readline()


@config_app.command(short_help="Print the JSON Schema of the YAML file.")
def schema() -> None:
    """Example: vinfer config schema

    Print the JSON Schema of the YAML file.
    """
    from vinfer.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


@config_app.command(short_help="Print every key as a Markdown table.")
def reference() -> None:
    """Example: vinfer config reference

    Print every key with its type, default and meaning, as a Markdown table.
    """
    from vinfer.config import reference_table

    typer.echo(reference_table(), nl=False)


@config_app.command(short_help="Show what differs between two YAML files.")
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="YAML file that is in use.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="YAML file that is to be used.")],
    as_json: AsJson = False,
) -> None:
    """Example: vinfer config diff old.yaml new.yaml

    Print the keys whose values differ, and what applies each: SIGHUP, a restart, or a rebuild, and why.
    """
    from vinfer.config import changes, load_config

    before, after = (load_config(path, environ=os.environ) for path in (old, new))
    rows = [
        {
            "key": change.key,
            "old": _plain(change.old),
            "new": _plain(change.new),
            "applied_by": change.applied_by,
            "why": change.why_rebuilt,
        }
        for change in changes(before, after)
    ]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        why = f": {row['why']}" if row["applied_by"] == "rebuild" else ""
        values = f"{json.dumps(row['old'])} -> {json.dumps(row['new'])}"
        typer.echo(f"{row['key']}: {values} ({row['applied_by']}{why})")


def _plain(value: object) -> object:
    """Return a value, or a whole block, as JSON has it."""
    from pydantic_core import to_json

    return json.loads(to_json(value))


@config_app.command(short_help="Check a YAML file.")
def check(config_path: ConfigPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Example: vinfer config check configs/smollm2.yaml

    Check a YAML file, the environment and overrides; name the models if they are right.
    """
    from vinfer.config import load_config

    config = load_config(config_path, overrides=overrides or (), environ=os.environ)
    names = [model.name for model in config.models]
    typer.echo(
        json.dumps({"models": names}) if as_json else f"{config_path}: right; models: {', '.join(names)}"
    )


@config_app.command(short_help="Print a YAML file with every default.")
def show(config_path: ConfigPath, overrides: Overrides = None) -> None:
    """Example: vinfer config show configs/smollm2.yaml

    Check a YAML file and print it with every default filled in, as JSON.
    """
    from vinfer.config import load_config

    config = load_config(config_path, overrides=overrides or (), environ=os.environ)
    typer.echo(config.model_dump_json(indent=2))
