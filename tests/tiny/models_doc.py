"""docs/reports/models.md: which families are supported, and how the parity matrix proved them right."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

_HEAD = """# Models

Written by `scripts/parity`; do not edit. Each row is a tiny random checkpoint, saved by transformers
{transformers} in its own format, built by vinfer, served through slots of the real engine, and held
against transformers' own logits in float32 (torch {torch}, eager attention, no cache).

- **error**: the largest error of a log probability (the token's own and the twenty best), as a fraction
  of the largest logit: for a prompt of one chunk, a prompt of several chunks, and decode through the
  slots. Prompts have 1 to 191 tokens; windows and `original_max_position_embeddings` are shorter; a
  chunk is 32.
- **greedy**: whether all of 64 greedy tokens after every prompt are transformers', alone and in a crowd.
- **mistakes**: wrong references that the same check must refuse: rotary frequencies 1 % off, positions
  one off, a window one narrower, one bias dropped, query halves interleaved, one norm weight off. How
  many were noticed, of those that the family can have.
- **bfloat16**: the same checkpoint built in bfloat16 against the float32 reference: how often its most
  likely token is the reference's, and the mean KL divergence in nats (over the twenty best tokens and
  one bucket for the rest). Random logits lie nearer to each other than those of text, so this is harder
  than a trained model.

Families with images (`llava`, `vipllava`, `gemma3`) are asked with none to three images, first, in the
middle, last, side by side and in several chunks; a chunk is 64, and their mistakes are those of an encoder:
an image turned or swapped with another, another layer or activation, two positions swapped, a bias
dropped, a norm off; for Gemma 3 also those of its mask: images seen one way only, in all layers or in
those with a window, or seeing each other. Those of `qwen2_vl` and `qwen2_5_vl` are
of many sizes; their mistakes are also rows for columns, in the tower or in the decoder, images that move
in time, an answer one position late, a pair rotated by the wrong axis, a tower's windows too large.

Every tensor is drawn anew, norms, biases, sinks and routers too, so large that attention is far from
uniform.

| family | checkpoint | one chunk | several | decode | limit | greedy | mistakes | bf16 top-1 | KL | |
|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclasses.dataclass
class MatrixRow:
    """What the matrix found of one checkpoint; filled in by one test after the other."""

    checkpoint: str
    model_type: str
    tolerance: float
    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    is_greedy_equal: bool | None = None
    noticed: list[str] = dataclasses.field(default_factory=list)
    missed: list[str] = dataclasses.field(default_factory=list)
    top1_agreement: float | None = None
    mean_kl: float | None = None

    @property
    def is_right(self) -> bool:
        errors = self.errors.values()
        return bool(
            errors
            and max(errors) <= self.tolerance
            and self.is_greedy_equal
            and self.noticed
            and not self.missed
        )


def models_doc(rows: Iterable[MatrixRow], versions: Mapping[str, str]) -> str:
    """Return the whole file; `versions` of torch and transformers."""
    lines = [_line(row) for row in sorted(rows, key=lambda row: (row.model_type, row.checkpoint))]
    return _HEAD.format(**versions) + "\n".join(lines) + "\n"


def _line(row: MatrixRow) -> str:
    def figure(value: float | None, spec: str) -> str:
        return "not measured" if value is None else format(value, spec)

    cells = [
        row.model_type,
        row.checkpoint,
        *(figure(row.errors.get(phase), ".1e") for phase in ("one chunk", "several chunks", "decode")),
        f"{row.tolerance:.0e}",
        {True: "equal", False: "**different**", None: "not measured"}[row.is_greedy_equal],
        f"{len(row.noticed)} of {len(row.noticed) + len(row.missed)}",
        figure(row.top1_agreement, ".3f"),
        figure(row.mean_kl, ".1e"),
        "right" if row.is_right else "**wrong**",
    ]
    return f"| {' | '.join(cells)} |"
