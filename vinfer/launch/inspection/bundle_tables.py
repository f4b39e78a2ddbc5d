"""What `vinfer bundle` prints: lines that a terminal of 80 columns and a pipe can take."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from vinfer.launch.inspection.stored_bundles import StoredBundle
from vinfer.launch.terminal import size_words


def print_list(bundles: Sequence[StoredBundle]) -> None:
    """Print each bundle with what is wrong with it, and the size of all."""
    for bundle in bundles:
        _print_bundle(bundle)
    typer.echo(f"{len(bundles)} bundles, {size_words(sum(bundle.num_bytes for bundle in bundles))}")


def print_pruned(bundles: Sequence[StoredBundle], *, removed: bool) -> None:
    """Print the bundles that are, or would be, removed."""
    for bundle in bundles:
        _print_bundle(bundle)
    size = size_words(sum(bundle.num_bytes for bundle in bundles))
    done = "removed" if removed else "would be removed; --yes removes them"
    typer.echo(f"{len(bundles)} bundles, {size}: {done}")


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print one fact per line."""
    width = max(map(len, facts))
    for name, value in facts.items():
        typer.echo(f"{name:{width}}  {value if isinstance(value, str) else json.dumps(value)}")


def _print_bundle(bundle: StoredBundle) -> None:
    day = dt.datetime.fromtimestamp(bundle.created, dt.UTC).date()
    manifest = bundle.manifest
    words = (
        "" if manifest is None else f"  {manifest.model.source}, {manifest.dtype}, {manifest.num_slots} slots"
    )
    typer.echo(bundle.directory)
    typer.echo(f"  {day}  {size_words(bundle.num_bytes)}{words}")
    if bundle.problem is not None:
        typer.echo(f"  not for this installation: {bundle.problem}")
