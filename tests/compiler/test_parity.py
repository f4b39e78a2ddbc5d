"""The real engine over real bundles matches transformers in float32, alone and batched.

Random checkpoints have attention far from uniform, so that a wrong rotary table, mask, bias or position
shows. Comparisons with references that are wrong on purpose confirm this.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

import torch
from tiny.bundles import BUNDLES, MAX_CHUNK, MAX_MODEL_LEN
from tiny.checkpoints import NUM_TOKENS
from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.models import VOCAB_SIZE
from tiny.prompts import CROWD, LENGTHS, crowd, prompt
from tiny.references import Comparison, Logits, answer_logits, compare, differing_steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

TOLERANCE = 1e-5
"""Largest error of a logprob, as a fraction of the largest logit."""

FAMILIES = ("llama", "llama3-rope", "qwen2", "qwen3")


@dataclasses.dataclass(frozen=True)
class Case:
    """One bundle, its reference, and its answers to every prompt asked alone."""

    engine: Engine
    model: PreTrainedModel
    questions: dict[int, Question]
    answers: dict[int, Answer]
    logits: dict[int, Logits]
    """The reference's logits for questions and answers, by prompt length."""


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.bundles(name)) for name in FAMILIES]
)
def case(
    request: pytest.FixtureRequest,
    engine_of: Callable[[str], Engine],
    reference_of: Callable[[str], PreTrainedModel],
) -> Case:
    engine = engine_of(request.param)
    model = reference_of(BUNDLES[request.param]["checkpoint"])
    questions = {length: Question(prompt(length)) for length in LENGTHS}
    answers = dict(zip(LENGTHS, ask_alone(engine, list(questions.values())), strict=True))
    logits = {length: answer_logits(model, questions[length], answers[length]) for length in LENGTHS}
    return Case(engine, model, questions, answers, logits)


def comparisons(case: Case) -> dict[int, Comparison]:
    return {length: compare(case.logits[length], case.answers[length]) for length in LENGTHS}


def test_the_reference_can_tell_right_from_wrong(case: Case) -> None:
    """Attention prefers particular positions, and answers do not repeat one token."""
    length = 300
    with torch.no_grad():
        attention = case.model(torch.tensor([prompt(length)]), output_attentions=True).attentions
    sharpest = torch.stack(attention).amax(dim=-1).mean().item()
    uniform = float(np.mean(1 / np.arange(1, length + 1)))
    assert sharpest > 10 * uniform
    assert np.mean([len(set(answer.token_ids)) for answer in case.answers.values()]) > 16


def test_greedy_tokens_are_those_of_transformers(case: Case) -> None:
    assert {answer.finish_reason for answer in case.answers.values()} == {"length"}
    assert {len(answer.token_ids) for answer in case.answers.values()} == {GREEDY.max_tokens}
    assert {length: c.wrong_steps for length, c in comparisons(case).items() if c.wrong_steps} == {}


def test_generate_of_transformers_gives_the_same_tokens(case: Case) -> None:
    """Compare with transformers' own KV cache and generation loop."""
    for length in (1, 33, 200):
        generated = case.model.generate(
            torch.tensor([prompt(length)]),
            attention_mask=torch.ones(1, length, dtype=torch.long),
            max_new_tokens=GREEDY.max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            suppress_tokens=list(range(NUM_TOKENS, VOCAB_SIZE)),
        )
        generated_answer = Answer(generated[0, length:].tolist())
        assert differing_steps(case.logits[length], case.answers[length], generated_answer) == []


def test_logprobs_are_those_of_transformers(case: Case) -> None:
    """Compare after prefill in one chunk, in several chunks, and decode: the token's own and the top 20."""
    found = comparisons(case)
    errors = {
        "one chunk": max(c.logprob_errors[0] for n, c in found.items() if n <= MAX_CHUNK),
        "several chunks": max(c.logprob_errors[0] for n, c in found.items() if n > MAX_CHUNK),
        "decode": max(c.logprob_errors[1:].max() for c in found.values()),
    }
    assert {phase: error for phase, error in errors.items() if error > TOLERANCE} == {}


@pytest.mark.parametrize("join_apart", [False, True], ids=["together", "joining at different times"])
def test_eight_in_flight_answer_as_each_alone(case: Case, join_apart: bool) -> None:
    """Submit more requests than slots: some wait and reuse the slots of other requests."""
    answers = ask(case.engine, crowd(join_apart=join_apart))
    for length, answer in zip(CROWD, answers, strict=True):
        assert differing_steps(case.logits[length], case.answers[length], answer) == []
        error = compare(
            answer_logits(case.model, case.questions[length], answer), answer
        ).logprob_errors.max()
        assert error <= TOLERANCE


def test_the_last_row_of_the_cache_is_right(case: Case) -> None:
    """Use a prompt that leaves room for a few tokens, and one that leaves room for a single token."""
    for length in (MAX_MODEL_LEN - 3, MAX_MODEL_LEN - 1):
        question = Question(prompt(length), dataclasses.replace(GREEDY, max_tokens=MAX_MODEL_LEN - length))
        [answer] = ask(case.engine, [question])
        assert len(answer.token_ids) == MAX_MODEL_LEN - length
        comparison = compare(answer_logits(case.model, question, answer), answer)
        assert comparison.wrong_steps == ()
        assert comparison.logprob_errors.max() <= TOLERANCE


def test_a_seeded_request_says_the_same_in_a_crowd(case: Case) -> None:
    sampled = dataclasses.replace(GREEDY, temperature=1.0, top_p=0.95, seed=2**63 + 12345)
    question = Question(prompt(33), sampled)
    [alone] = ask(case.engine, [question])
    neighbours = [
        Question(prompt(length, seed=1), dataclasses.replace(sampled, seed=length, max_tokens=128))
        for length in (65, 5)
    ]
    # It comes third, so it has a different slot and different neighbors.
    *_, crowded = ask(case.engine, [*neighbours, dataclasses.replace(question, joins_after=5)])
    assert crowded.token_ids == alone.token_ids
    assert alone.token_ids != case.answers[33].token_ids
    [reseeded] = ask(
        case.engine, [dataclasses.replace(question, params=dataclasses.replace(sampled, seed=1))]
    )
    assert reseeded.token_ids != alone.token_ids


Positions = Callable[[Any, int], Any]


def wrong_theta(model: PreTrainedModel) -> None:
    model.model.rotary_emb.inv_freq *= 0.99


def swapped_query_and_key(model: PreTrainedModel) -> None:
    attention = model.model.layers[0].self_attn
    query, key = attention.q_proj.weight, attention.k_proj.weight
    rows = key.shape[0]
    query[:rows], key[:] = key.clone(), query[:rows].clone()


def wrong_epsilon(model: PreTrainedModel) -> None:
    model.model.layers[0].input_layernorm.variance_epsilon *= 10


def unchanged(model: PreTrainedModel) -> None:
    pass


def one_place_skipped(positions: Any, prompt_len: int) -> Any:
    """Make the answer's positions one too large; shifting all positions would change nothing."""
    return positions + (positions >= prompt_len)


WRONG_REFERENCES: list[tuple[Callable[[PreTrainedModel], None], Positions | None, bool]] = [
    (unchanged, None, True),
    (wrong_theta, None, False),
    (swapped_query_and_key, None, False),
    (wrong_epsilon, None, False),
    (unchanged, one_place_skipped, False),
]


@pytest.mark.parametrize(("change", "positions", "is_right"), WRONG_REFERENCES)
def test_a_wrong_reference_is_noticed(
    case: Case,
    change: Callable[[PreTrainedModel], None],
    positions: Positions | None,
    is_right: bool,
) -> None:
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        change(model)
    question, answer = case.questions[33], case.answers[33]
    comparison = compare(answer_logits(model, question, answer, positions=positions), answer)
    if is_right:
        assert comparison.logprob_errors.max() <= TOLERANCE
    else:
        assert comparison.logprob_errors.max() > 3 * TOLERANCE


def test_a_wrong_token_is_noticed(case: Case) -> None:
    answer = copy.deepcopy(case.answers[33])
    answer.token_ids[20] = (answer.token_ids[20] + 1) % NUM_TOKENS
    assert compare(case.logits[33], answer).wrong_steps == (20,)
