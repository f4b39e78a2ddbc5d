"""The tables of `vinfer verify`: one line per prompt and a summary, on standard output."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vinfer.launch.verification.verify import Verification
from vinfer.parity.measure import PromptFigures


def print_tables(found: Sequence[Verification], console: Console | None = None) -> None:
    """Print one table per model."""
    console = console or Console()
    for verification in found:
        console.print(_table(verification))
        report = verification.certificate.report
        versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
        console.print(f"{report.dtype} against {report.reference_dtype}; {versions}", highlight=False)
        for shortfall in verification.shortfalls:
            console.print(f"failed: {shortfall}", style="bold red", highlight=False)
        if not verification.shortfalls:
            console.print("passed", style="bold green", highlight=False)


def _table(verification: Verification) -> Table:
    figures = verification.certificate.report.figures
    # Without vertical lines the table fits the 80 columns of a log.
    table = Table(title=verification.name, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("prompt", no_wrap=True)
    for heading in ("max error", "mean error", "top-1", "max KL", "mean KL", "greedy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for prompt in verification.certificate.prompts:
        table.add_row(
            prompt.name,
            *_cells(prompt),
            f"{prompt.num_tokens - len(prompt.wrong_steps)}/{prompt.num_tokens}",
        )
    table.add_section()
    table.add_row(
        f"all {figures.num_prompts}",
        f"{figures.largest_error:.1e}",
        f"{figures.mean_error:.1e}",
        f"{figures.top1_agreement:.2%}",
        f"{figures.largest_kl:.1e}",
        f"{figures.mean_kl:.1e}",
        f"{figures.num_tokens - figures.num_wrong_tokens}/{figures.num_tokens}",
    )
    return table


def _cells(prompt: PromptFigures) -> list[str]:
    return [
        f"{prompt.largest_error:.1e}",
        f"{prompt.mean_error:.1e}",
        f"{prompt.top1_agreement:.2%}",
        f"{prompt.largest_kl:.1e}",
        f"{prompt.mean_kl:.1e}",
    ]
