"""`vinfer bundle`: the bundles in the cache, and those in other directories."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vinfer.cli.options import HELP_STYLE, AsJson, show

bundle_app = typer.Typer(
    help="Example: vinfer bundle list\n\nLook at bundles, check and remove them.",
    no_args_is_help=True,
    rich_markup_mode=HELP_STYLE,
)
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A bundle directory.")]
CacheDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The cache_dir of a config, if it is not the default.")
]


@bundle_app.command(name="list", short_help="List the bundles in the cache.")
def list_bundles(cache_dir: CacheDir = None, as_json: AsJson = False) -> None:
    """Example: vinfer bundle list

    List the bundles in the cache, and why some of them cannot be served here.
    """
    from vinfer.launch.inspection import stored_bundles
    from vinfer.launch.inspection.bundle_tables import print_list

    found = stored_bundles.stored_bundles(bundles_dir(cache_dir))
    plain = [stored_bundles.as_json(bundle) for bundle in found]
    show(plain, lambda: print_list(found), as_json=as_json)


@bundle_app.command(short_help="Show what a bundle holds.")
def inspect(directory: Directory, as_json: AsJson = False) -> None:
    """Example: vinfer bundle inspect bundles/llama

    Show what a bundle holds: model, shapes, memory, versions and its parity certificate.
    """
    from vinfer.bundle.directory import read_manifest
    from vinfer.launch.inspection.bundle_tables import print_facts
    from vinfer.launch.inspection.stored_bundles import facts

    found = facts(directory, read_manifest(directory))
    show(found, lambda: print_facts(found), as_json=as_json)


@bundle_app.command(short_help="Check the hashes of all files of a bundle.")
def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Example: vinfer bundle verify bundles/llama

    Check that all files of a bundle are as they were written, weights too: seconds per GB.
    """
    from vinfer.bundle.directory import read_manifest
    from vinfer.bundle.verification import verify_files

    manifest = read_manifest(directory)
    verify_files(directory, manifest, weights=True)
    count = len(manifest.files)
    intact = {"intact": True, "num_files": count}
    show(intact, lambda: typer.echo(f"{count} files are intact"), as_json=as_json)


@bundle_app.command(short_help="Remove bundles that nothing here can serve.")
def prune(
    cache_dir: CacheDir = None,
    days: Annotated[
        int | None,
        typer.Option("--older-than", min=0, metavar="DAYS", help="Also those built longer ago than this."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it, only list them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Example: vinfer bundle prune --older-than 30 --yes

    List, and with --yes remove, the bundles of the cache that this installation cannot serve.
    """
    from vinfer.launch.inspection import stored_bundles
    from vinfer.launch.inspection.bundle_tables import print_pruned

    found = stored_bundles.prune(bundles_dir(cache_dir), older_than_days=days, removes=yes)
    plain = [stored_bundles.as_json(bundle) for bundle in found]
    show(plain, lambda: print_pruned(found, removed=yes), as_json=as_json)


def bundles_dir(cache_dir: Path | None) -> Path:
    """Return where the bundles of a cache are."""
    from vinfer.config import default_cache_dir

    given = os.environ.get("VINFER_CACHE_DIR")
    return (cache_dir or (Path(given) if given else default_cache_dir(os.environ))) / "bundles"
