"""The parity certificate that a bundle may carry: the figures of its comparison with transformers.

Pure data. `vinfer.parity` measures it, `directory.record_parity` stores it.
"""

from __future__ import annotations

from typing import Literal

from vinfer.bundle.frozen import Frozen


class ParityFigures(Frozen):
    """The engine over a bundle against transformers, over all prompts and the tokens of their greedy answers.

    Attributes:
        largest_error, mean_error: of the logprobs of each token and of the twenty best, as fractions of the
            largest absolute logit of the prompt's answer.
        top1_agreement: fraction of tokens at which both have the same most likely token.
        mean_kl, largest_kl: KL divergence of one token's distribution in nats, over the twenty best and one
            bucket for all others: a lower bound of that over the whole vocabulary.
        num_wrong_tokens: greedy tokens that are neither the reference's nor tied with it.
    """

    num_prompts: int
    num_tokens: int
    largest_error: float
    mean_error: float
    top1_agreement: float
    mean_kl: float
    largest_kl: float
    num_wrong_tokens: int


class ParityThresholds(Frozen):
    """What figures pass; null asks nothing. `tie`: logits this near are equal, in fractions as the errors."""

    max_error: float | None = None
    max_wrong_tokens: int | None = None
    min_top1_agreement: float | None = None
    max_mean_kl: float | None = None
    tie: float


class ParityReport(Frozen):
    """The bundle compared with transformers: who measured, what, and the verdict.

    Attributes:
        measured: seconds since the epoch.
        dtype, reference_dtype: of the bundle, and of transformers' weights and arithmetic.
    """

    verdict: Literal["passed", "failed"]
    measured: int
    versions: dict[str, str]
    dtype: str
    reference_dtype: str
    figures: ParityFigures
    thresholds: ParityThresholds
