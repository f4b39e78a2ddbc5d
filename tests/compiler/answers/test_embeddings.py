"""Pooled hidden states match transformers, in one chunk and in several, alone and batched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

from tiny.bundles import MAX_CHUNK, MAX_MODEL_LEN
from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.prompts import CROWD, prompt
from tiny.references import answer_logits, compare, embedding, embedding_error

from vinfer.bundle.directory import read_manifest
from vinfer.bundle.manifest import Pooling

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

TOLERANCE = 1e-5
"""Largest error of a component of an L2-normalized vector."""

# Both embed programs, odd lengths, bucket edges, page edges, up to a full context.
LENGTHS = (1, 2, 7, 8, 9, 33, 63, MAX_CHUNK, MAX_CHUNK + 1, 72, 129, 255, 256, 257, 403, MAX_MODEL_LEN)
POOLINGS: tuple[Pooling, ...] = ("mean", "last")
# One bundle embeds prompts one at a time, the other two at a time.
BUNDLES = ("llama", "llama3-rope")

pytestmark = pytest.mark.bundles(*BUNDLES)

Vector = npt.NDArray[np.float64]


@pytest.fixture(scope="module", params=BUNDLES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(name: str, engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of(name)


@pytest.fixture
def model(name: str, reference_of: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return reference_of(name)


def embedding_of(length: int, pooling: Pooling) -> Question:
    params = dataclasses.replace(GREEDY, max_tokens=0, top_logprobs=None)
    return Question(prompt(length), params, pooling=pooling)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("length", LENGTHS)
def test_they_are_those_of_transformers(
    engine: Engine, model: PreTrainedModel, length: int, pooling: Pooling
) -> None:
    question = embedding_of(length, pooling)
    before = engine.stats().generation_tokens_total
    [answer] = ask(engine, [question])
    assert (answer.token_ids, answer.finish_reason) == ([], "length")
    assert engine.stats().generation_tokens_total == before
    assert embedding_error(model, question, answer) <= TOLERANCE


def test_mistakes_are_noticed(engine: Engine, model: PreTrainedModel) -> None:
    """Use the other pooling, a missing chunk, and padding that is pooled."""
    question = embedding_of(MAX_CHUNK + 20, "mean")
    answer, other = ask(engine, [question, dataclasses.replace(question, pooling="last")])
    padded = dataclasses.replace(question, prompt_ids=(*question.prompt_ids, 0))
    for wrong_question, wrong_answer in (
        (question, other),
        (question, Answer(pooled=answer.pooled[:1])),
        (padded, answer),
    ):
        assert embedding_error(model, wrong_question, wrong_answer) > 100 * TOLERANCE


def test_in_a_crowd_with_generation_as_alone(engine: Engine, model: PreTrainedModel) -> None:
    """Submit more requests than slots, with every pooling, mixed with generation."""
    questions = [
        Question(prompt(length)) if place % 3 == 0 else embedding_of(length, POOLINGS[place % 3 - 1])
        for place, length in enumerate((*CROWD, *CROWD))
    ]
    embeddings = [question for question in questions if question.pooling is not None]
    alone = iter(ask_alone(engine, embeddings))
    for question, answer in zip(questions, ask(engine, questions), strict=True):
        assert answer.finish_reason == "length"
        if question.pooling is None:
            assert compare(answer_logits(model, question, answer), answer).wrong_steps == ()
        else:
            assert embedding_error(model, question, answer) <= TOLERANCE
            assert np.abs(embedding(answer) - embedding(next(alone))).max() <= TOLERANCE


def test_prompts_of_one_bucket_share_dispatches(
    bundle_of: Callable[[str], Path], engine_of: Callable[[str], Engine]
) -> None:
    """With programs for two prompts, the third of three is dispatched alone."""
    shapes = [program.shape for program in read_manifest(bundle_of("llama3-rope")).programs]
    assert {shape.rows for shape in shapes if shape.kind == "embed"} == {1, 2}
    engine = engine_of("llama3-rope")
    before = engine.stats().num_prefill_dispatches_total
    ask(engine, [embedding_of(30, "mean"), embedding_of(31, "last"), embedding_of(32, "mean")])
    # The engine may have started the first before it saw the second.
    assert engine.stats().num_prefill_dispatches_total - before in (2, 3)


def test_the_manifest_says_how_to_pool(bundle_of: Callable[[str], Path]) -> None:
    found: dict[str, Any] = {}
    for bundle in BUNDLES:
        manifest = read_manifest(bundle_of(bundle))
        assert manifest.embeddings is not None
        [size] = {p.outputs[0].shape[1] for p in manifest.programs if p.shape.kind == "embed"}
        assert size == manifest.embeddings.size
        found[bundle] = manifest.embeddings.pooling
    assert found == {"llama": "mean", "llama3-rope": "last"}
