"""The logprobs of a prompt's tokens match transformers, in one chunk and in several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

from tiny.bundles import MAX_CHUNK, MAX_MODEL_LEN
from tiny.checkpoints import NUM_TOKENS
from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.prompts import CROWD, prompt
from tiny.references import answer_logits, compare, differing_steps

from vinfer.engine.request import TokenLogprobs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

TOLERANCE = 1e-5
"""Largest error of a logprob, as a fraction of the largest logit."""

# Both score programs, full and partial blocks of 32 rows, and a page's edge.
LENGTHS = (2, 8, 9, 33, 63, MAX_CHUNK, MAX_CHUNK + 1, 72, 129, 255, 257, 403, MAX_MODEL_LEN - 1)

pytestmark = pytest.mark.bundles("llama")


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("llama")


@pytest.fixture(scope="module")
def model(reference_of: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return reference_of("llama")


def scoring(length: int, max_tokens: int = 1, num_top: int = 20) -> Question:
    params = dataclasses.replace(GREEDY, max_tokens=max_tokens, top_logprobs=num_top)
    return Question(prompt(length), params, scores_prompt=True)


def error(model: PreTrainedModel, question: Question, scored: list[TokenLogprobs]) -> float:
    """Return the largest error: all tokens but the first are compared as an answer to it."""
    first, *others = question.prompt_ids
    as_answer = Answer(others, scored)
    logits = answer_logits(model, Question((first,)), as_answer)
    return float(compare(logits, as_answer).logprob_errors.max())


@pytest.mark.parametrize("length", LENGTHS)
def test_they_are_those_of_transformers(engine: Engine, model: PreTrainedModel, length: int) -> None:
    question = scoring(length)
    [answer] = ask(engine, [question])
    assert len(answer.prompt_logprobs) == length - 1
    assert error(model, question, answer.prompt_logprobs) <= TOLERANCE
    # The token after the prompt is compared as usual.
    assert compare(answer_logits(model, question, answer), answer).logprob_errors.max() <= TOLERANCE


def test_a_shifted_score_is_noticed(engine: Engine, model: PreTrainedModel) -> None:
    """Reproduce the result of a mistake at a chunk border."""
    question = scoring(MAX_CHUNK + 20)
    scored = ask(engine, [question])[0].prompt_logprobs
    border = MAX_CHUNK - 1
    scored[border], scored[border + 1] = scored[border + 1], scored[border]
    assert error(model, question, scored) > 100 * TOLERANCE


def test_a_greedy_token_has_the_very_float_of_the_best(engine: Engine) -> None:
    """Harnesses compare them with `==`; here the prompt is the model's own greedy output."""
    [start] = ask(engine, [Question(prompt(9), dataclasses.replace(GREEDY, max_tokens=150))])
    ids = (*prompt(9), *start.token_ids)
    [scored] = ask(engine, [dataclasses.replace(scoring(1), prompt_ids=ids)])

    def best(step: TokenLogprobs) -> tuple[int, float]:
        # The model's best id can be missing in the tokenizer; such ids are never sampled.
        pairs = zip(step.top_ids, step.top_logprobs, strict=True)
        return next(pair for pair in pairs if pair[0] < NUM_TOKENS)

    said = scored.prompt_logprobs[8:]
    assert [best(step) for step in said] == [
        (token, step.logprob) for token, step in zip(start.token_ids, said, strict=True)
    ]
    assert any(step.logprob < best(step)[1] for step in scored.prompt_logprobs[:8])


def test_what_follows_a_scored_prompt_is_the_same_answer(engine: Engine, model: PreTrainedModel) -> None:
    lengths = (33, 200)
    plain = ask_alone(engine, [Question(prompt(length)) for length in lengths])
    scored = ask_alone(engine, [scoring(length, max_tokens=64) for length in lengths])
    for length, one, other in zip(lengths, plain, scored, strict=True):
        logits = answer_logits(model, Question(prompt(length)), one)
        assert differing_steps(logits, one, other) == []


def test_scored_and_other_prompts_together(engine: Engine, model: PreTrainedModel) -> None:
    """Submit more requests than slots; every other one scores its prompt, some do nothing else."""
    questions = [
        scoring(length, max_tokens=place % 4 and 12) if place % 2 == 0 else Question(prompt(length))
        for place, length in enumerate(CROWD)
    ]
    for question, answer in zip(questions, ask(engine, questions), strict=True):
        assert answer.finish_reason == "length"
        assert len(answer.token_ids) == question.params.max_tokens
        if question.scores_prompt and len(question.prompt_ids) > 1:
            assert error(model, question, answer.prompt_logprobs) <= TOLERANCE
        else:
            assert answer.prompt_logprobs == []
        if answer.token_ids:
            logits = answer_logits(model, question, answer)
            assert compare(logits, answer).wrong_steps == ()


def test_nothing_generated_after_a_prompt_that_fills_the_model(
    engine: Engine, model: PreTrainedModel
) -> None:
    question = scoring(MAX_MODEL_LEN, max_tokens=0)
    before = engine.stats().generation_tokens_total
    [answer] = ask(engine, [question])
    assert (answer.token_ids, answer.finish_reason) == ([], "length")
    assert engine.stats().generation_tokens_total == before
    assert error(model, question, answer.prompt_logprobs) <= TOLERANCE


def test_as_many_alternatives_as_asked_for(engine: Engine) -> None:
    for num_top in (0, 3):
        [answer] = ask(engine, [scoring(70, num_top=num_top)])
        assert {len(step.top_ids) for step in answer.prompt_logprobs} == {num_top}
        assert np.isfinite([step.logprob for step in answer.prompt_logprobs]).all()
