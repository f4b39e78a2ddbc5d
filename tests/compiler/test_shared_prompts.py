"""Requests with the same prompt share its prefill and answer as if alone, on the real engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.prompts import prompt

from vinfer.server.generate.sampling import choice_seed

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine

NUM_SLOTS = 6
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, max_tokens=24, seed=77, repetition_penalty=1.1)

pytestmark = pytest.mark.bundles("llama")


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("llama")


def choices(length: int, n: int, key: str | None) -> list[Question]:
    """Return n choices as the server submits them, each with its own seed and length."""
    return [
        Question(
            prompt(length),
            dataclasses.replace(SAMPLED, seed=choice_seed(77, choice), max_tokens=24 - 3 * (choice % 5)),
            prompt_key=key,
        )
        for choice in range(n)
    ]


def num_prompt_tokens(engine: Engine, questions: list[Question]) -> tuple[list[Answer], int]:
    """Return the answers and how many prompt tokens were prefilled for them."""
    before = engine.stats().prompt_tokens_total
    answers = ask(engine, questions)
    return answers, engine.stats().prompt_tokens_total - before


# One chunk, and several that end inside a copy block, at its end and just after it.
@pytest.mark.parametrize("length", [33, 128, 129, 130, 300])
@pytest.mark.parametrize("n", [3, NUM_SLOTS + 3])
def test_they_answer_as_single_requests_do(engine: Engine, length: int, n: int) -> None:
    alone = ask_alone(engine, choices(length, n, None))
    shared, num_prefilled = num_prompt_tokens(engine, choices(length, n, f"{length}/{n}"))
    assert [answer.token_ids for answer in shared] == [answer.token_ids for answer in alone]
    # The whole prompt once, then the last token for each other choice.
    assert num_prefilled == length + n - 1
    assert [answer.num_cached_tokens for answer in shared] == [0] + [length - 1] * (n - 1)
    # The choices differ, so each was sampled with its own seed.
    assert len({tuple(answer.token_ids[:9]) for answer in shared}) == n


def test_a_short_prompt_is_not_worth_a_copy(engine: Engine) -> None:
    shared, num_prefilled = num_prompt_tokens(engine, choices(8, 3, "short"))
    assert num_prefilled == 24
    assert [answer.num_cached_tokens for answer in shared] == [0, 0, 0]


def test_other_prompts_among_them_take_nothing(engine: Engine) -> None:
    ours, theirs = choices(200, 4, "ours"), choices(201, 4, "theirs")
    alone = ask_alone(
        engine, [dataclasses.replace(question, prompt_key=None) for question in (*ours, *theirs)]
    )
    mixed = [question for pair in zip(ours, theirs, strict=True) for question in pair]
    answers = ask(engine, mixed)
    assert [a.token_ids for a in (*answers[::2], *answers[1::2])] == [a.token_ids for a in alone]


def test_one_that_ended_or_runs_can_be_copied(engine: Engine) -> None:
    first, *others = choices(150, 3, "later")
    alone = ask_alone(engine, [dataclasses.replace(question, prompt_key=None) for question in others])
    assert ask(engine, [first])[0].num_cached_tokens == 0
    # It has ended. Then an unrelated request has the slots to itself for a while.
    long = dataclasses.replace(others[0], joins_after=0)
    late = dataclasses.replace(others[1], joins_after=3)
    (one, other), num_prefilled = num_prompt_tokens(engine, [long, late])
    assert [one.token_ids, other.token_ids] == [answer.token_ids for answer in alone]
    assert num_prefilled == 2
    assert (one.num_cached_tokens, other.num_cached_tokens) == (149, 149)


def test_a_slot_with_another_prompt_is_not_copied(engine: Engine) -> None:
    first, second = choices(150, 2, "overwritten")
    [alone] = ask_alone(engine, [dataclasses.replace(second, prompt_key=None)])
    ask(engine, [first])
    # Every slot gets another prompt.
    ask(engine, [Question(prompt(100 + i), GREEDY) for i in range(NUM_SLOTS)])
    [answer] = ask(engine, [second])
    assert answer.num_cached_tokens == 0
    assert answer.token_ids == alone.token_ids


def test_a_scored_prompt_is_always_read_whole(engine: Engine) -> None:
    questions = [dataclasses.replace(question, scores_prompt=True) for question in choices(100, 3, "scored")]
    answers, num_prefilled = num_prompt_tokens(engine, questions)
    assert num_prefilled == 300
    assert answers[0].prompt_logprobs == answers[1].prompt_logprobs == answers[2].prompt_logprobs
    assert len(answers[0].prompt_logprobs) == 99
