"""bfloat16 bundles are as close to the exact answer as transformers in bfloat16.

Two correct programs in bfloat16 round differently, so a third one judges both: float32 arithmetic on the same
rounded weights.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

import torch
from tiny.checkpoints import NUM_TOKENS, reference
from tiny.engines import Answer, Question, ask
from tiny.families import FAMILY_MODELS
from tiny.prompts import prompt
from tiny.references import Logits, answer_logits, log_softmax

from vinfer.bundle.directory import read_manifest

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine

logger = logging.getLogger(__name__)

LENGTHS = (1, 5, 33, 64, 65, 100, 130, 190)
# Three standard deviations of a share of 97 % among 512 tokens.
MARGIN = 0.025
MAX_RATIO = 1.1
"""Of our error and that of transformers."""
NUM_JUDGED = 10
"""The most likely tokens of each step; an engine says its 20."""


@dataclasses.dataclass(frozen=True)
class Judged:
    """One greedy answer, and the logits [steps, vocab] after its tokens.

    Attributes:
        rounded: those of transformers in bfloat16.
        exact: those of float32 arithmetic on the same weights.
    """

    answer: Answer
    rounded: Logits
    exact: Logits

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        return np.array(self.answer.token_ids)

    def errors(self) -> npt.NDArray[np.float64]:
        """Return [2, n]: the errors of our logprobs, and of those of transformers for the same tokens.

        The exact answer says which tokens count. Our own top 20 are there partly because of our errors, and
        would make them look larger than they are.
        """
        exact, rounded = log_softmax(self.exact), log_softmax(self.rounded)
        found = [
            (logprob - exact[step, token], rounded[step, token] - exact[step, token])
            for step, line in enumerate(self.answer.logprobs)
            for token, logprob in zip(line.top_ids, line.top_logprobs, strict=True)
            if token in exact[step].argsort()[-NUM_JUDGED:]
        ]
        assert len(found) > 0.9 * NUM_JUDGED * len(exact)
        return np.array(found).T


def judged(name: str, engine: Engine) -> list[Judged]:
    """Return the answers of a bfloat16 engine over a checkpoint, with what they are judged by."""
    rounded = reference(name, "bfloat16")
    exact = reference(name, "bfloat16").to(torch.float32)
    questions = [Question(prompt(length)) for length in LENGTHS]
    return [
        Judged(answer, answer_logits(rounded, question, answer), answer_logits(exact, question, answer))
        for question, answer in zip(questions, ask(engine, questions), strict=True)
    ]


def root_mean_squares(answers: list[Judged]) -> tuple[float, float]:
    """Return the error of our logprobs, and that of transformers."""
    errors = np.concatenate([each.errors() for each in answers], axis=1)
    ours, theirs = np.sqrt(np.mean(np.square(errors), axis=1))
    return float(ours), float(theirs)


@pytest.mark.bundles("llama-bfloat16")
def test_weights_and_cache_are_bfloat16_and_the_rotary_table_is_not(
    bundle_of: Callable[[str], Path],
) -> None:
    manifest = read_manifest(bundle_of("llama-bfloat16"))
    assert {spec.dtype for spec in manifest.kv} == {"bfloat16"}
    assert {spec.name: spec.dtype for spec in manifest.weights if spec.dtype != "bfloat16"} == {
        "rope.default": "float32"
    }


@pytest.mark.bundles("llama-bfloat16")
def test_answers_are_as_good_as_those_of_transformers(engine_of: Callable[[str], Engine]) -> None:
    answers = judged("llama", engine_of("llama-bfloat16"))
    agrees, agrees_exactly, rounded_agrees_exactly, lags, noise = [], [], [], [], 0.0
    for each in answers:
        best, rounded_best = (logits[:, :NUM_TOKENS].argmax(axis=-1) for logits in (each.exact, each.rounded))
        agrees += list(each.tokens == rounded_best)
        agrees_exactly += list(each.tokens == best)
        rounded_agrees_exactly += list(rounded_best == best)
        chosen = np.take_along_axis(each.exact, each.tokens[:, None], -1)[:, 0]
        lags.append(each.exact[:, :NUM_TOKENS].max(axis=-1) - chosen)
        noise = max(noise, float(np.abs(each.rounded - each.exact).max()))
    logger.info(
        "top-1 agreement with transformers %.4f, with the exact answer %.4f (transformers %.4f)",
        np.mean(agrees),
        np.mean(agrees_exactly),
        np.mean(rounded_agrees_exactly),
    )
    assert len(agrees) == 64 * len(LENGTHS)
    assert np.mean(agrees_exactly) >= np.mean(rounded_agrees_exactly) - MARGIN
    # Each errs independently, so they may differ from each other twice as often as from the truth.
    assert np.mean(agrees) >= 1 - 2 * (1 - np.mean(rounded_agrees_exactly)) - MARGIN
    check_errors("llama", answers)
    # Every token is close to the exact answer's choice.
    assert max(map(np.max, lags)) <= 2 * noise


@pytest.mark.whole_matrix
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.bundles(f"{name}-bfloat16")) for name in FAMILY_MODELS]
)
def test_no_family_errs_more_than_transformers(
    name: str, lent_engine: Callable[[str], AbstractContextManager[Engine]]
) -> None:
    with lent_engine(f"{name}-bfloat16") as engine:
        check_errors(name, judged(name, engine))


def check_errors(name: str, answers: list[Judged]) -> None:
    ours, theirs = root_mean_squares(answers)
    logger.info("%s: logprob error %.5f, transformers %.5f, ratio %.2f", name, ours, theirs, ours / theirs)
    assert ours <= MAX_RATIO * theirs
