"""The parity certificate that a bundle may carry: the figures of its comparison with transformers.

Pure data. `vinfer.parity` measures it, `directory.record_parity` stores it.
"""

from __future__ import annotations

from typing import Literal

from vinfer.bundle.frozen import Frozen


class ParityFigures(Frozen):
    """A bundle's answers compared with those of transformers, over all tokens of the greedy answers.

    Attributes:
        largest_error, mean_error: errors of the logprobs of each token and of the top twenty, as fractions of
            the largest absolute logit of the prompt's answer.
        top1_agreement: fraction of tokens at which both agree on the most likely token.
        mean_kl, largest_kl: KL divergence of one token's distribution in nats, over the top twenty tokens and
            one bucket for all others: a lower bound of the divergence over the whole vocabulary.
        num_wrong_tokens: greedy tokens that neither match the reference nor are tied with its token.
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
    """Thresholds that the figures must meet; null means no requirement.

    Attributes:
        tie: logits that differ by at most this much count as equal, as a fraction like the errors.
    """

    max_error: float | None = None
    max_wrong_tokens: int | None = None
    min_top1_agreement: float | None = None
    max_mean_kl: float | None = None
    tie: float


class ParityReport(Frozen):
    """The comparison of a bundle with transformers: when, with which versions, the figures and the verdict.

    Attributes:
        measured: seconds since the epoch.
        dtype, reference_dtype: dtype of the bundle, and of transformers' weights and arithmetic.
    """

    verdict: Literal["passed", "failed"]
    measured: int
    versions: dict[str, str]
    dtype: str
    reference_dtype: str
    figures: ParityFigures
    thresholds: ParityThresholds
