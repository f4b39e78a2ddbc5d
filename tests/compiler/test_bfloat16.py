"""bfloat16 bundles are as close to the exact answer as transformers in bfloat16.

Two correct programs in bfloat16 round differently, so a third one judges the tokens of both: float32
arithmetic on the same rounded weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

import torch
from tiny.checkpoints import NUM_TOKENS, reference
from tiny.engines import Question, ask
from tiny.prompts import prompt
from tiny.references import answer_logits, log_softmax

from vinfer.bundle.directory import read_manifest

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine

logger = logging.getLogger(__name__)

LENGTHS = (1, 5, 33, 64, 65, 100, 130, 190)
# Three standard deviations of a share of 97 % among 512 tokens.
MARGIN = 0.025

pytestmark = pytest.mark.bundles("llama-bfloat16")


def test_weights_and_cache_are_bfloat16_and_the_rotary_table_is_not(
    bundle_of: Callable[[str], Path],
) -> None:
    manifest = read_manifest(bundle_of("llama-bfloat16"))
    assert {spec.dtype for spec in manifest.kv} == {"bfloat16"}
    assert {spec.name: spec.dtype for spec in manifest.weights if spec.dtype != "bfloat16"} == {
        "rope.default": "float32"
    }


def test_answers_are_as_good_as_those_of_transformers(
    engine_of: Callable[[str], Engine],
) -> None:
    rounded = reference("llama", "bfloat16")
    exact = reference("llama", "bfloat16").to(torch.float32)
    questions = [Question(prompt(length)) for length in LENGTHS]
    answers = ask(engine_of("llama-bfloat16"), questions)
    agrees, agrees_exactly, rounded_agrees_exactly, lags = [], [], [], []
    errors, rounded_errors, noise = [], [], 0.0
    for question, answer in zip(questions, answers, strict=True):
        tokens = np.array(answer.token_ids)
        of_rounded = answer_logits(rounded, question, answer)
        of_exact = answer_logits(exact, question, answer)
        best = of_exact[:, :NUM_TOKENS].argmax(axis=-1)
        rounded_best = of_rounded[:, :NUM_TOKENS].argmax(axis=-1)
        agrees += list(tokens == rounded_best)
        agrees_exactly += list(tokens == best)
        rounded_agrees_exactly += list(rounded_best == best)
        lags.append(
            of_exact[:, :NUM_TOKENS].max(axis=-1) - np.take_along_axis(of_exact, tokens[:, None], -1)[:, 0]
        )
        noise = max(noise, float(np.abs(of_rounded - of_exact).max()))
        top_ids = np.array([line.top_ids for line in answer.logprobs])
        expected = np.take_along_axis(log_softmax(of_exact), top_ids, -1)
        errors.append(np.array([line.top_logprobs for line in answer.logprobs]) - expected)
        rounded_errors.append(np.take_along_axis(log_softmax(of_rounded), top_ids, -1) - expected)
    root_mean_square = float(np.sqrt(np.mean(np.square(errors))))
    rounded_root_mean_square = float(np.sqrt(np.mean(np.square(rounded_errors))))
    logger.info(
        "top-1 agreement with transformers %.4f, with the exact answer %.4f (transformers %.4f); "
        "logprob error %.5f (transformers %.5f)",
        np.mean(agrees),
        np.mean(agrees_exactly),
        np.mean(rounded_agrees_exactly),
        root_mean_square,
        rounded_root_mean_square,
    )
    assert len(agrees) == 64 * len(LENGTHS)
    assert np.mean(agrees_exactly) >= np.mean(rounded_agrees_exactly) - MARGIN
    # Each errs independently, so they may differ from each other twice as often as from the truth.
    assert np.mean(agrees) >= 1 - 2 * (1 - np.mean(rounded_agrees_exactly)) - MARGIN
    # Either may round at different steps: 1.2 was measured.
    assert root_mean_square <= 1.5 * rounded_root_mean_square
    # Every token is close to the exact answer's choice.
    assert max(map(np.max, lags)) <= 2 * noise
