"""`deterministic: true` on the real engine: bit-identical tokens and logprobs, alone and batched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.engines import GREEDY, Answer, Binder, Question, ask, ask_alone
from tiny.prompts import prompt

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine

pytestmark = pytest.mark.bundles("llama-pinned")

SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, top_p=0.95, max_tokens=24, repetition_penalty=1.1)
CHUNK = 32
EOS = 257
LENGTHS = (1, 20, 31, 32, 33, 64, 65, 150)


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("llama-pinned")


@pytest.fixture(scope="module")
def binder(bundle_of: Callable[[str], Path]) -> Binder:
    return Binder(bundle_of("llama-pinned"))


def questions(binder: Binder) -> list[Question]:
    """Return greedy, sampled, constrained and scored requests of one chunk and several, each twice."""
    letters = binder.grammar("regex", "[a-z]{20}")
    made = []
    for place, length in enumerate(LENGTHS * 2):
        is_constrained = place % 4 == 3
        params = dataclasses.replace(
            SAMPLED if place % 3 else GREEDY,
            seed=place,
            max_tokens=12 + place,
            stop_token_ids=(EOS,) if is_constrained else (),
        )
        made.append(
            Question(
                prompt(length, seed=place),
                params,
                grammar=letters if is_constrained else None,
                scores_prompt=place % 5 == 4,
                joins_after=(0, 3, 1)[place % 3],
            )
        )
    return made


def exact(answer: Answer) -> tuple[object, ...]:
    return answer.token_ids, answer.logprobs, answer.prompt_logprobs, answer.finish_reason


def test_every_bit_is_that_of_the_request_alone(engine: Engine, binder: Binder) -> None:
    asked = questions(binder)
    cold = [dataclasses.replace(question, cache_scope=None) for question in asked]
    alone = [exact(answer) for answer in ask_alone(engine, cold)]
    assert [exact(answer) for answer in ask(engine, cold)] == alone
    # Some begin with pages of others now.
    assert [exact(answer) for answer in ask(engine, asked)] == alone
    # Different predecessors and different slots.
    backwards = [dataclasses.replace(question, joins_after=0) for question in reversed(asked)]
    assert [exact(answer) for answer in reversed(ask(engine, backwards))] == alone


@pytest.mark.parametrize("length", [20, 33, 64, 150])
def test_choices_that_share_a_prompt_too(engine: Engine, length: int) -> None:
    """Whole chunks are copied; the last one is prefilled as if alone."""
    asked = [
        Question(prompt(length), dataclasses.replace(SAMPLED, seed=seed), cache_scope=f"of {length}")
        for seed in range(8)
    ]
    alone = ask_alone(engine, [dataclasses.replace(question, cache_scope=None) for question in asked])
    shared = ask(engine, asked)
    assert [exact(answer) for answer in shared] == [exact(answer) for answer in alone]
    num_copied = (length - 1) // CHUNK * CHUNK
    assert [answer.num_cached_tokens for answer in shared] == [0] + [num_copied] * 7
