"""The table of `vinfer verify` is readable if no terminal reports a width."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from vinfer.bundle.certificate import ParityFigures, ParityReport
from vinfer.launch.verification.table import print_tables
from vinfer.launch.verification.verify import Verification
from vinfer.parity.measure import Certificate, PromptFigures
from vinfer.parity.thresholds import default_thresholds

PROMPT = PromptFigures(
    name="1984 random",
    prompt_len=1984,
    num_tokens=64,
    logit_scale=31.5,
    largest_error=2.5e-05,
    mean_error=1.25e-07,
    top1_agreement=0.984375,
    mean_kl=1.5e-10,
    largest_kl=3.5e-09,
    wrong_steps=(7,),
)


def printed(num_wrong_tokens: int) -> str:
    report = ParityReport(
        verdict="failed" if num_wrong_tokens else "passed",
        measured=1_700_000_001,
        versions={"vinfer": "0.1.0", "transformers": "5.5.4", "torch": "2.13.0"},
        dtype="float32",
        reference_dtype="float32",
        figures=ParityFigures(
            num_prompts=12,
            num_tokens=768,
            largest_error=2.5e-06,
            mean_error=1.25e-07,
            top1_agreement=1.0,
            mean_kl=1.5e-10,
            largest_kl=3.5e-09,
            num_wrong_tokens=num_wrong_tokens,
        ),
        thresholds=default_thresholds("float32", is_mixture=False),
    )
    out = io.StringIO()
    print_tables(
        [Verification("tiny", Path("bundle"), Certificate(report, (PROMPT,)))],
        Console(file=out, width=80),
    )
    return out.getvalue()


def test_a_table_fits_eighty_columns() -> None:
    text = printed(0)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= 80
    row = next(line.split() for line in text.splitlines() if "1984" in line)
    assert row == ["1984", "random", "2.5e-05", "1.2e-07", "98.44%", "3.5e-09", "1.5e-10", "63/64"]
    assert text.splitlines()[-1] == "passed"


def test_a_shortfall_is_named_below() -> None:
    assert "failed: the number of wrong tokens is 3; at most 0 is allowed" in printed(3)
