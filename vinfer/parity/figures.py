"""Measures how far one greedy answer of the engine is from the reference's logits. Arithmetic only.

The reference sees the prompt and the answer in one forward pass. So each token is compared with the logits
that follow the same tokens, and one wrong token does not make the later ones wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vinfer.engine.request import TokenLogprobs

Logits = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

NOT_FINITE = 1e9
"""Worse than any threshold, and a valid number in JSON."""
_LEAST_REST = 1e-10
"""Lowest total probability of all other tokens; the engine's float32 logprobs cannot resolve less."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """One answer compared with the reference, step by step; arrays [steps].

    Attributes:
        scale: the largest absolute logit of the reference.
        largest_errors: float64, the largest error of the chosen token's and the top logprobs, over `scale`.
        mean_errors: float64, the mean error of the top logprobs, over `scale`.
        lags: float64, how much the reference prefers its best token to the generated one, over `scale`; 0 if
            that is its best token.
        top1_agrees: bool, whether the engine's most likely token is the reference's.
        kls: float64, in nats, KL divergence of the engine from the reference over the engine's top tokens and
            one bucket for all others: a lower bound of the divergence over the whole vocabulary.
    """

    scale: float
    largest_errors: Floats
    mean_errors: Floats
    lags: Floats
    top1_agrees: npt.NDArray[np.bool_]
    kls: Floats


def compare(
    logits: Logits, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs], *, num_token_ids: int
) -> StepFigures:
    """Compare a greedy answer with the reference's logits, float32 [steps, vocab].

    A figure that is not finite, because the engine's logprobs are not, becomes `NOT_FINITE`.

    Args:
        token_ids, logprobs: the engine's, [steps]; at least one top logprob per step.
        num_token_ids: ids that the tokenizer has. A model's vocabulary may be padded with more, which are
            never sampled.
    """
    assert len(token_ids) == len(logprobs) == len(logits)
    tokens = np.array(token_ids)
    steps = np.arange(len(tokens))
    scale = float(np.abs(logits).max())
    allowed = logits[:, :num_token_ids].astype(np.float64)
    expected = log_softmax(logits)
    top_ids = np.array([line.top_ids for line in logprobs])
    top = np.array([line.top_logprobs for line in logprobs], np.float64)
    own = np.array([line.logprob for line in logprobs], np.float64)
    expected_top = np.take_along_axis(expected, top_ids, axis=-1)
    best = -np.sort(-expected, axis=-1)[:, : top.shape[1]]
    errors = np.abs(top - expected_top)
    largest = np.maximum.reduce(
        [
            errors.max(axis=-1),
            # Also compare the sorted values, so that right values of the wrong ids do not pass.
            np.abs(top - best).max(axis=-1),
            np.abs(own - expected[steps, tokens]),
        ]
    )
    return StepFigures(
        scale=scale,
        largest_errors=_finite(largest / scale),
        mean_errors=_finite(errors.mean(axis=-1) / scale),
        lags=(allowed.max(axis=-1) - allowed[steps, tokens]) / scale,
        top1_agrees=top_ids[:, 0] == logits.argmax(axis=-1),
        kls=_finite(_kl_divergences(expected_top, top)),
    )


def log_softmax(logits: Logits) -> Floats:
    """Return float64 log probabilities over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _kl_divergences(expected: Floats, top: Floats) -> Floats:
    """Return float64 [steps]: sum of p log(p / q) over the top tokens and one bucket for the rest."""
    rest = np.maximum(1 - np.exp(expected).sum(axis=-1), _LEAST_REST)
    rest_found = np.maximum(1 - np.exp(top).sum(axis=-1), _LEAST_REST)
    inside: Any = (np.exp(expected) * (expected - top)).sum(axis=-1)
    result: Floats = np.maximum(inside + rest * (np.log(rest) - np.log(rest_found)), 0.0)
    return result


def _finite(figures: Floats) -> Floats:
    result: Floats = np.where(np.isfinite(figures), figures, NOT_FINITE)
    return result
