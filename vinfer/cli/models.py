"""`vinfer models`: checkpoints, before a config names them."""

from __future__ import annotations

from typing import Annotated

import typer

from vinfer.cli.options import HELP_STYLE, AsJson, show

models_app = typer.Typer(
    help="Example: vinfer models inspect meta-llama/Llama-3.2-1B-Instruct\n\nLook at checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=HELP_STYLE,
)


Checkpoint = Annotated[str, typer.Argument(metavar="SOURCE", help="As models[].source of a config.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]


@models_app.command(short_help="Show what a checkpoint is, or why it is refused.")
def inspect(
    source: Checkpoint,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Example: vinfer models inspect meta-llama/Llama-3.2-1B-Instruct

    Show family, parameters, dtype, longest request, chat template and notes; fail if vinfer refuses it.
    """
    from vinfer.launch.inspection.bundle_tables import print_facts
    from vinfer.launch.inspection.model_facts import model_facts
    from vinfer.launch.terminal import configure_logging

    configure_logging("warning")
    found = model_facts(source, revision=revision)
    show(found, lambda: print_facts(found), as_json=as_json)


@models_app.command(short_help="Download a checkpoint ahead of a build.")
def pull(source: Checkpoint, revision: Revision = None, as_json: AsJson = False) -> None:
    """Example: vinfer models pull meta-llama/Llama-3.2-1B-Instruct

    Download a checkpoint of the hub, or find it, and print its directory; fail if vinfer refuses it.
    """
    from vinfer.launch.inspection.model_facts import model_facts
    from vinfer.launch.terminal import configure_logging

    configure_logging("warning")
    path = model_facts(source, revision=revision)["path"]
    show({"source": source, "path": path}, lambda: typer.echo(path), as_json=as_json)
