"""The parity matrix: every family matches transformers in float32, through real bundles and slots.

One tiny random checkpoint per family (`tiny.families`), saved by transformers. Prompts are longer than the
prefill chunk, the sliding windows and `original_max_position_embeddings`. References that are wrong on
purpose, one mistake at a time, show that a wrong model could not pass.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

import torch
from tiny.bundles import FAMILY_CHUNK
from tiny.checkpoints import NUM_TOKENS
from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.families import FAMILY_MODELS, IN_EVERY_RUN
from tiny.models_doc import MatrixRow
from tiny.prompts import prompt
from tiny.references import Comparison, Logits, answer_logits, compare, differing_steps

from vinfer.parity.measure import certify
from vinfer.parity.prompts import Prompt
from vinfer.parity.thresholds import default_thresholds, shortfalls

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

LENGTHS = (1, 5, 31, 32, 33, 64, 97, 150, 191)
CROWD = (150, 5, 97)
JUDGED = 97
"""The prompt for comparisons with wrong references: several chunks, longer than every window."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One family's bundle, its reference, and its answers to every prompt asked alone."""

    name: str
    engine: Engine
    model: PreTrainedModel
    questions: dict[int, Question]
    answers: dict[int, Answer]
    logits: dict[int, Logits]
    row: MatrixRow

    @property
    def tolerance(self) -> float:
        return FAMILY_MODELS[self.name].tolerance

    def comparisons(self) -> dict[int, Comparison]:
        return {length: compare(self.logits[length], self.answers[length]) for length in LENGTHS}


def _marks(name: str) -> list[pytest.MarkDecorator]:
    needed = pytest.mark.bundles(name)
    return [needed] if name in IN_EVERY_RUN else [needed, pytest.mark.whole_matrix]


@pytest.fixture(scope="module", params=[pytest.param(name, marks=_marks(name)) for name in FAMILY_MODELS])
def case(
    request: pytest.FixtureRequest,
    lent_engine: Callable[[str], AbstractContextManager[Engine]],
    reference_of: Callable[[str], PreTrainedModel],
    matrix: dict[str, MatrixRow],
) -> Iterator[Case]:
    name = request.param
    model = reference_of(name)
    row = matrix.setdefault(name, MatrixRow(name, model.config.model_type, FAMILY_MODELS[name].tolerance))
    questions = {length: Question(prompt(length)) for length in LENGTHS}
    with lent_engine(name) as engine:
        answers = dict(zip(LENGTHS, ask_alone(engine, list(questions.values())), strict=True))
        logits = {length: answer_logits(model, questions[length], answers[length]) for length in LENGTHS}
        yield Case(name, engine, model, questions, answers, logits, row)


def test_the_reference_can_tell_right_from_wrong(case: Case) -> None:
    """Attention prefers particular positions, and answers do not repeat one token."""
    length = 191
    with torch.no_grad():
        attention = case.model(torch.tensor([prompt(length)]), output_attentions=True).attentions
    sharpest = torch.stack(attention).amax(dim=-1).mean().item()
    assert sharpest > 5 * float(np.mean(1 / np.arange(1, length + 1)))
    assert np.mean([len(set(answer.token_ids)) for answer in case.answers.values()]) > 12


def test_greedy_tokens_are_those_of_transformers(case: Case) -> None:
    assert {len(answer.token_ids) for answer in case.answers.values()} == {GREEDY.max_tokens}
    wrong = {n: c.wrong_steps for n, c in case.comparisons().items() if c.wrong_steps}
    case.row.is_greedy_equal = not wrong
    assert wrong == {}


def test_logprobs_are_those_of_transformers(case: Case) -> None:
    """Compare after prefill in one chunk, in several chunks, and decode: the token's own and the top 20."""
    found = case.comparisons()
    errors = {
        "one chunk": max(c.logprob_errors[0] for n, c in found.items() if n <= FAMILY_CHUNK),
        "several chunks": max(c.logprob_errors[0] for n, c in found.items() if n > FAMILY_CHUNK),
        "decode": max(c.logprob_errors[1:].max() for c in found.values()),
    }
    case.row.errors = {phase: float(error) for phase, error in errors.items()}
    assert {phase: error for phase, error in errors.items() if error > case.tolerance} == {}


def test_in_a_crowd_as_alone(case: Case) -> None:
    """Submit more requests than slots: the third reuses a slot."""
    answers = ask(case.engine, [case.questions[length] for length in CROWD])
    for length, answer in zip(CROWD, answers, strict=True):
        assert differing_steps(case.logits[length], case.answers[length], answer) == []
        logits = answer_logits(case.model, case.questions[length], answer)
        assert compare(logits, answer).logprob_errors.max() <= case.tolerance


def _rotary_frequencies(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    return (
        buffer
        for name, buffer in model.named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    )


def _first(model: PreTrainedModel, *endings: str) -> torch.Tensor | None:
    """Return the first parameter whose name has one of these endings."""
    found = (parameter for name, parameter in model.named_parameters() if name.endswith(endings))
    return next(found, None)


def wrong_theta(model: PreTrainedModel) -> bool:
    """Make every rotary frequency a few percent too small."""
    frequencies = list(_rotary_frequencies(model))
    for buffer in frequencies:
        buffer *= 0.99
    # Longrope computes them for each sequence.
    if "rope_theta" in (getattr(model.config, "rope_parameters", None) or {}):
        model.config.rope_parameters["rope_theta"] *= 1.05
    return bool(frequencies)


def narrower_window(model: PreTrainedModel) -> bool:
    """Make every sliding window one position too narrow."""
    if "sliding_attention" not in (getattr(model.config, "layer_types", None) or ()) and not (
        getattr(model.config, "sliding_window", None)
    ):
        return False
    model.config.sliding_window -= 1
    return True


def dropped_bias(model: PreTrainedModel) -> bool:
    """Set one attention bias to zero; if there is none, an attention sink."""
    bias = _first(model, "q_proj.bias", "query_key_value.bias", "c_attn.bias", "sinks")
    if bias is None:
        return False
    bias.zero_()
    return True


def interleaved_queries(model: PreTrainedModel) -> bool:
    """Interleave the two halves of every query head of one layer, as llama.cpp stores Llama's."""
    weight = _first(model, "q_proj.weight", "qkv_proj.weight", "query_key_value.weight")
    if weight is None or not list(_rotary_frequencies(model)):
        return False
    head_dim = getattr(model.config, "head_dim", None) or (
        model.config.hidden_size // model.config.num_attention_heads
    )
    head = weight[:head_dim].clone()
    weight[:head_dim] = head.reshape(2, head_dim // 2, -1).swapaxes(0, 1).reshape(head.shape)
    return True


def wrong_norm(model: PreTrainedModel) -> bool:
    """Change one weight of one norm by a tenth."""
    weight = _first(model, "layernorm.weight", "ln_1.weight")
    assert weight is not None
    weight[3] += 0.1
    return True


def swapped_experts(model: PreTrainedModel) -> bool:
    """Swap two experts of one router."""
    weight = _first(model, "mlp.gate.weight", "mlp.router.weight")
    if weight is None:
        return False
    weight[:2] = weight[:2].flip(0)
    return True


def one_place_skipped(positions: Any, prompt_len: int) -> Any:
    """Make the answer's positions one too large; shifting all positions would change nothing."""
    return positions + (positions >= prompt_len)


def check_that_it_is_noticed(case: Case, mistake: str, wrong: Logits) -> None:
    is_noticed = compare(wrong, case.answers[JUDGED]).logprob_errors.max() > 3 * case.tolerance
    (case.row.noticed if is_noticed else case.row.missed).append(mistake)
    assert is_noticed


MISTAKES = (wrong_theta, narrower_window, dropped_bias, interleaved_queries, wrong_norm, swapped_experts)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_wrong_model_is_noticed(case: Case, mistake: Callable[[PreTrainedModel], bool]) -> None:
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        if not mistake(model):
            pytest.skip("this family has nothing of the kind")
    question, answer = case.questions[JUDGED], case.answers[JUDGED]
    check_that_it_is_noticed(case, mistake.__name__, answer_logits(model, question, answer))


def test_wrong_positions_are_noticed(case: Case) -> None:
    question, answer = case.questions[JUDGED], case.answers[JUDGED]
    logits = answer_logits(case.model, question, answer, positions=one_place_skipped)
    check_that_it_is_noticed(case, one_place_skipped.__name__, logits)


@pytest.mark.whole_matrix
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.bundles(f"{name}-bfloat16")) for name in FAMILY_MODELS]
)
def test_bfloat16_is_near(
    name: str,
    lent_engine: Callable[[str], AbstractContextManager[Engine]],
    reference_of: Callable[[str], PreTrainedModel],
    matrix: dict[str, MatrixRow],
) -> None:
    """Apply the thresholds of `vinfer verify`; greedy answers may diverge, their logits may not."""
    model = reference_of(name)

    def reference(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Logits:
        return answer_logits(model, Question(tuple(prompt_ids)), Answer(list(answer_ids)))

    is_mixture = any("experts" in path for path, _ in model.named_parameters())
    with lent_engine(f"{name}-bfloat16") as engine:
        certificate = certify(
            engine,
            reference,
            [Prompt(str(length), prompt(length)) for length in LENGTHS],
            num_token_ids=NUM_TOKENS,
            dtype="bfloat16",
            thresholds=default_thresholds("bfloat16", is_mixture=is_mixture),
            versions={},
        )
    figures = certificate.report.figures
    row = matrix.setdefault(name, MatrixRow(name, model.config.model_type, FAMILY_MODELS[name].tolerance))
    row.top1_agreement, row.mean_kl = figures.top1_agreement, figures.mean_kl
    assert certificate.report.verdict == "passed", shortfalls(figures, certificate.report.thresholds)
