"""Writes docs/reports/models.md: the supported families, and the results of the parity matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

_HEAD = """# Models

Written by `scripts/parity`; do not edit. Each row is a tiny random checkpoint, saved by transformers
{transformers} in its own format, built by vinfer, and served through slots of the real engine. Its answers
are compared with transformers' own logits in float32 (torch {torch}, eager attention, no cache).

- **error**: the largest error of a log probability (the token's own and the top 20), as a fraction of the
  largest logit. It is measured for a prompt of one chunk, a prompt of several chunks, and decode through
  slots. Prompts have 1 to 191 tokens; windows and `original_max_position_embeddings` are shorter; a chunk
  is 32.
- **greedy**: whether all 64 greedy tokens after every prompt match transformers, alone and batched.
- **mistakes**: wrong references that the same check must reject: rotary frequencies 1 % off, positions
  one off, a window one narrower, one bias dropped, query halves interleaved, one norm weight off. The
  column counts the mistakes noticed among those that apply to the family.
- **bfloat16**: the same checkpoint built in bfloat16, compared with the float32 reference: how often its
  most likely token is the reference's, and the mean KL divergence in nats (over the top 20 tokens and one
  bucket for the rest). Random logits are closer together than those of a trained model, so this test is
  harder.

Image families (`llava`, `vipllava`, `gemma3`) get zero to three images: first, in the middle, last, adjacent,
and across several chunks. A chunk is 64, and their mistakes concern the encoder: an image flipped or swapped
with another, a different layer or activation, two positions swapped, a bias dropped, a norm off. Gemma 3 adds
mistakes of its mask: images with causal attention, in all layers or only in those with a window, and images
that see each other. Images of `qwen2_vl` and `qwen2_5_vl` have many sizes. Their mistakes also include rows
swapped with columns, in the tower or in the decoder, images that move in time, an answer one position late, a
pair rotated by the wrong axis, and tower windows that are too large.

Every tensor is random, including norms, biases, sinks and routers, and large enough that attention is far
from uniform.

| family | checkpoint | one chunk | several | decode | limit | greedy | mistakes | bf16 top-1 | KL | |
|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclasses.dataclass
class MatrixRow:
    """The results of one checkpoint in the matrix, filled in by successive tests."""

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
    """Return the text of the file; `versions` has those of torch and transformers."""
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
