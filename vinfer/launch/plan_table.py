"""The tables of `vinfer plan`: memory per device, and requests that run together, on standard output."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vinfer.bundle.manifest import mesh_words
from vinfer.launch.plan import ModelPlan, Plan
from vinfer.launch.terminal import size_words


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print a plan: per model a table, then what all of them leave."""
    console = console or Console()
    for model in plan.models:
        console.print(_memory_table(model))
        if model.num_together:
            console.print(_together_table(model))
        console.print(
            f"{len(model.programs)} programs: {', '.join(model.programs)}", highlight=False, markup=False
        )
        console.print(_times(model), highlight=False, markup=False)
        for note in model.notes:
            console.print(f"note: {note}", highlight=False, markup=False)
    console.print(_left(plan), highlight=False, markup=False)


def _memory_table(model: ModelPlan) -> Table:
    table = Table(
        title=f"{model.name}: {model.dtype}, mesh {mesh_words(model.mesh)}, {model.num_slots} slots",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("per device", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("")
    for row in _rows(model):
        table.add_row(*row)
    return table


def _rows(model: ModelPlan) -> Iterator[tuple[str, str, str]]:
    fit = model.fit
    origin = "estimated from the checkpoint" if model.bundle is None else "from the bundle"
    for name, size in fit.parts.by_name.items():
        yield name.replace("_", " "), size_words(size), origin
    pages = fit.parts.pages
    if fit.num_pages:
        count = fit.num_pages[0] * model.mesh["dp"]
        words = f"{count} pages of {pages.page_size} tokens; requests of up to {fit.max_len} tokens"
    else:
        words = "does not fit"
    yield "KV cache", size_words(fit.kv_cache_bytes) if fit.num_pages else "-", words
    if model.temporary_bytes is None:
        yield "temporary", "unknown", "until the programs are compiled"
    else:
        yield "temporary", size_words(model.temporary_bytes), "from stored machine code"
    if model.code_bytes:
        yield "programs", size_words(model.code_bytes), f"{len(model.programs)} of them, in this process"


def _together_table(model: ModelPlan) -> Table:
    """Return one column per length, so that the table is short."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("tokens of each request", no_wrap=True)
    for length in model.num_together:
        table.add_column(f"{length}", justify="right", no_wrap=True)
    table.add_row("run together", *(f"{count}" for count in model.num_together.values()))
    return table


def _times(model: ModelPlan) -> str:
    """Return the expected times in words."""
    build = f"build: about {model.build_seconds:.0f} s" if model.build_seconds else "build: done"
    if model.start_seconds is None:
        return f"{build}; start: not known until one has been timed on such devices"
    first = "first start" if model.build_seconds else "start"
    return f"{build}; {first}: about {model.start_seconds:.0f} s"


def _left(plan: Plan) -> str:
    target, total, left = plan.target, plan.device_bytes, plan.left_bytes
    devices = f"{target.num_devices} {target.platform} device{'s' if target.num_devices > 1 else ''}"
    if total is None or left is None:
        return f"{devices} of unknown memory: name a kind, such as --devices tpu-v5e:4"
    if left < 0:
        return f"{devices} of {size_words(total)}: {size_words(-left)} too little on each"
    return f"{devices} of {size_words(total)}: {size_words(left)} left on each"
