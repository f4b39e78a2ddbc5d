"""The arithmetic of a comparison, checked against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vinfer.bundle.certificate import ParityFigures
from vinfer.engine.request import TokenLogprobs
from vinfer.parity.figures import NOT_FINITE, compare, log_softmax
from vinfer.parity.thresholds import default_thresholds, shortfalls

# Four tokens with probabilities 1/2, 1/4, 1/8 and 1/8.
LOGITS = np.log(np.array([[4.0, 2.0, 1.0, 1.0]], np.float32))
SCALE = math.log(4)


def line(own: float, *top: tuple[int, float]) -> TokenLogprobs:
    ids, probabilities = zip(*top, strict=True)
    return TokenLogprobs(math.log(own), tuple(ids), tuple(math.log(p) for p in probabilities))


def test_the_same_distribution_has_no_error() -> None:
    steps = compare(LOGITS, [0], [line(0.5, (0, 0.5), (1, 0.25))], num_token_ids=4)
    assert steps.scale == pytest.approx(SCALE)
    for figures in (steps.largest_errors, steps.mean_errors, steps.lags, steps.kls):
        assert figures == pytest.approx([0.0], abs=1e-6)
    assert steps.top1_agrees.tolist() == [True]


def test_another_distribution() -> None:
    """The engine reports 1/4 and 1/4, which leaves 1/2 for the other two; their real sum is 1/4."""
    steps = compare(LOGITS, [1], [line(0.25, (1, 0.25), (0, 0.25))], num_token_ids=4)
    assert steps.largest_errors == pytest.approx([math.log(2) / SCALE], rel=1e-6)
    assert steps.mean_errors == pytest.approx([math.log(2) / 2 / SCALE], rel=1e-6)
    assert steps.lags == pytest.approx([math.log(2) / SCALE], rel=1e-6)
    assert steps.top1_agrees.tolist() == [False]
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    assert steps.kls == pytest.approx([by_hand], rel=1e-5)


def test_right_values_of_the_wrong_tokens_are_errors() -> None:
    steps = compare(LOGITS, [0], [line(0.5, (0, 0.5), (2, 0.125))], num_token_ids=4)
    # 1/8 is right for token 2, but token 1 should have been there.
    assert steps.mean_errors == pytest.approx([0.0], abs=1e-6)
    assert steps.largest_errors == pytest.approx([math.log(2) / SCALE], rel=1e-6)


def test_a_bucket_for_the_rest_is_a_lower_bound() -> None:
    draw = np.random.default_rng(1)
    logits = draw.normal(0, 3, (50, 200)).astype(np.float32)
    found = log_softmax((logits + draw.normal(0, 0.5, logits.shape)).astype(np.float32))
    ids = np.argsort(-found, axis=-1)[:, :20]
    lines = [
        TokenLogprobs(float(row[top[0]]), tuple(top.tolist()), tuple(row[top].tolist()))
        for row, top in zip(found, ids, strict=True)
    ]
    steps = compare(logits, ids[:, 0].tolist(), lines, num_token_ids=200)
    expected = log_softmax(logits)
    whole = (np.exp(expected) * (expected - found)).sum(axis=-1)
    assert np.all(steps.kls <= whole)
    assert np.all(steps.kls > 0)
    assert steps.kls.mean() > whole.mean() / 2


def test_ids_that_the_tokenizer_lacks_are_no_choice() -> None:
    """The tokenizer of this model lacks token 0, so token 1 is the best that can be generated."""
    logits = LOGITS[:, [1, 2, 3, 0]]
    steps = compare(logits, [0], [line(0.25, (3, 0.5), (0, 0.25))], num_token_ids=3)
    assert steps.lags.tolist() == [0.0]
    assert steps.top1_agrees.tolist() == [True]


def test_what_is_no_number_fails() -> None:
    nan = TokenLogprobs(math.nan, (0, 1), (math.nan, math.nan))
    steps = compare(LOGITS, [0], [nan], num_token_ids=4)
    assert steps.largest_errors.tolist() == [NOT_FINITE]
    assert steps.mean_errors.tolist() == [NOT_FINITE]
    assert steps.kls.tolist() == [NOT_FINITE]


RIGHT = ParityFigures(
    num_prompts=2,
    num_tokens=128,
    largest_error=3e-6,
    mean_error=1e-7,
    top1_agreement=1.0,
    mean_kl=1e-9,
    largest_kl=1e-8,
    num_wrong_tokens=0,
)


@pytest.mark.parametrize(
    ("dtype", "is_mixture", "max_error", "change", "missed"),
    [
        ("float32", False, None, {}, []),
        ("float32", False, None, {"largest_error": 1.1e-5}, ["largest error is 1.1e-05; at most 1e-05"]),
        ("float32", True, None, {"largest_error": 1.1e-5}, []),
        ("float32", True, None, {"largest_error": 1.1e-4}, ["largest error is 0.00011; at most 0.0001"]),
        ("float32", False, None, {"num_wrong_tokens": 1}, ["number of wrong tokens is 1; at most 0"]),
        ("float32", False, 1e-3, {"largest_error": 9e-4}, []),
        ("float32", False, 1e-6, {}, ["largest error is 3e-06; at most 1e-06"]),
        ("bfloat16", False, None, {"largest_error": 0.05, "num_wrong_tokens": 9}, []),
        ("bfloat16", False, 0.01, {"largest_error": 0.05}, ["largest error is 0.05; at most 0.01"]),
        ("bfloat16", False, None, {"top1_agreement": 0.5}, ["top-1 agreement is 0.5000; at least"]),
        ("float16", False, None, {"mean_kl": 0.5}, ["mean KL divergence is 0.5; at most"]),
        ("float32", False, None, {"largest_error": NOT_FINITE}, ["largest error is 1e+09"]),
    ],
)
def test_verdicts(
    dtype: str, is_mixture: bool, max_error: float | None, change: dict[str, float], missed: list[str]
) -> None:
    thresholds = default_thresholds(dtype, is_mixture=is_mixture, max_error=max_error)
    found = shortfalls(RIGHT.model_copy(update=change), thresholds)
    assert len(found) == len(missed)
    for sentence, part in zip(found, missed, strict=True):
        assert part in sentence
