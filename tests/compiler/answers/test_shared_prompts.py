"""Requests with the same beginning share its pages and answer as if alone, on the real engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.engines import GREEDY, Answer, Question, ask, ask_alone
from tiny.pages_of_engine import EnginePages
from tiny.prompts import prompt

from vinfer.server.generate.sampling import choice_seed

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine

NUM_SLOTS = 6
PAGE_SIZE = 32
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, max_tokens=24, seed=77, repetition_penalty=1.1)
TOLERANCE = 1e-5

pytestmark = pytest.mark.bundles("llama")


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("llama")


@pytest.fixture(scope="module")
def pages(engine: Engine, bundle_of: Callable[[str], Path]) -> EnginePages:
    return EnginePages(engine, bundle_of("llama"))


def choices(length: int, n: int, scope: str | None) -> list[Question]:
    """Return n choices as the server submits them, each with its own seed and length."""
    return [
        Question(
            prompt(length),
            dataclasses.replace(SAMPLED, seed=choice_seed(77, choice), max_tokens=24 - 3 * (choice % 5)),
            cache_scope=scope,
        )
        for choice in range(n)
    ]


def cold(questions: Sequence[Question]) -> list[Question]:
    """Return questions that share nothing with any other."""
    return [dataclasses.replace(question, cache_scope=None) for question in questions]


def num_prompt_tokens(engine: Engine, questions: list[Question]) -> tuple[list[Answer], int]:
    """Return the answers and how many prompt tokens were prefilled for them."""
    before = engine.stats().prompt_tokens_total
    answers = ask(engine, questions)
    return answers, engine.stats().prompt_tokens_total - before


def assert_same(answers: Sequence[Answer], others: Sequence[Answer]) -> None:
    """Compare token for token, and the logprobs within what another batch rounds."""
    for answer, other in zip(answers, others, strict=True):
        assert answer.token_ids == other.token_ids
        for one, two in zip(answer.logprobs, other.logprobs, strict=True):
            assert one.logprob == pytest.approx(two.logprob, rel=TOLERANCE, abs=TOLERANCE)
            np.testing.assert_allclose(one.top_logprobs, two.top_logprobs, rtol=TOLERANCE, atol=TOLERANCE)


# One chunk, and several that end inside a page, at its end and just after it.
@pytest.mark.parametrize("length", [2, 8, 32, 33, 128, 129, 130, 300])
@pytest.mark.parametrize("n", [3, NUM_SLOTS + 3])
def test_they_answer_as_single_requests_do(engine: Engine, length: int, n: int) -> None:
    alone = ask_alone(engine, choices(length, n, None))
    shared, num_prefilled = num_prompt_tokens(engine, choices(length, n, f"{length}/{n}"))
    assert_same(shared, alone)
    # The whole prompt once, then the last token for each other choice.
    assert num_prefilled == length + n - 1
    assert [answer.num_cached_tokens for answer in shared] == [0] + [length - 1] * (n - 1)
    # The choices differ, so each was sampled with its own seed.
    assert len({tuple(answer.token_ids[:9]) for answer in shared}) == n


def test_a_prompt_of_one_token_has_nothing_to_share(engine: Engine) -> None:
    shared, num_prefilled = num_prompt_tokens(engine, choices(1, 3, "one token"))
    assert num_prefilled == 3
    assert [answer.num_cached_tokens for answer in shared] == [0, 0, 0]


@pytest.mark.parametrize("arrive", ["one after the other", "together"])
@pytest.mark.parametrize("num_common", [31, 32, 33, 63, 64, 65, 200])
def test_a_common_beginning_is_shared_in_whole_pages(engine: Engine, num_common: int, arrive: str) -> None:
    common = prompt(num_common, seed=1)
    questions = [
        Question(common + prompt(tail, seed=2), cache_scope=f"{num_common} {arrive}") for tail in (9, 40, 1)
    ]
    alone = ask_alone(engine, cold(questions))
    answers = ask(engine, questions) if arrive == "together" else ask_alone(engine, questions)
    assert_same(answers, alone)
    num_shared = num_common // PAGE_SIZE * PAGE_SIZE
    # The last token is always computed.
    at_most = [(len(question.prompt_ids) - 1) // PAGE_SIZE * PAGE_SIZE for question in questions]
    assert [answer.num_cached_tokens for answer in answers] == [
        0,
        *(min(num_shared, most) for most in at_most[1:]),
    ]


@pytest.mark.parametrize("num_tokens", [31, 32, 33, 63, 64, 65])
def test_the_last_token_is_computed_whatever_is_there(engine: Engine, num_tokens: int) -> None:
    """A longer prompt with this one as its beginning has left all of its pages."""
    longer = Question(prompt(100, seed=3), cache_scope=f"longer than {num_tokens}")
    question = dataclasses.replace(longer, prompt_ids=longer.prompt_ids[:num_tokens])
    ask(engine, [longer])
    answers = ask(engine, [question])
    assert answers[0].num_cached_tokens == (num_tokens - 1) // PAGE_SIZE * PAGE_SIZE
    assert_same(answers, ask(engine, cold([question])))


def test_the_next_turn_finds_the_last_answer(engine: Engine) -> None:
    """The newest token of an answer is not written yet when it is read."""
    first = Question(prompt(50), dataclasses.replace(SAMPLED, max_tokens=48), cache_scope="turns")
    (answer,) = ask(engine, [first])
    turn = (*first.prompt_ids, *answer.token_ids)
    second = Question((*turn, *prompt(20)), cache_scope="turns")
    answers = ask(engine, [second])
    assert answers[0].num_cached_tokens == (len(turn) - 1) // PAGE_SIZE * PAGE_SIZE == 96
    assert_same(answers, ask(engine, cold([second])))


def test_other_prompts_among_them_take_nothing(engine: Engine) -> None:
    ours, theirs = choices(200, 4, "ours and theirs"), choices(201, 4, "ours and theirs")
    alone = ask_alone(engine, cold([*ours, *theirs]))
    mixed = [question for pair in zip(ours, theirs, strict=True) for question in pair]
    answers = ask(engine, mixed)
    assert_same([*answers[::2], *answers[1::2]], alone)


def test_one_that_ended_or_runs_can_be_shared(engine: Engine) -> None:
    first, *others = choices(150, 3, "later")
    alone = ask_alone(engine, cold(others))
    assert ask(engine, [first])[0].num_cached_tokens == 0
    # It has ended. Then an unrelated request has the slots to itself for a while.
    long = dataclasses.replace(others[0], joins_after=0)
    late = dataclasses.replace(others[1], joins_after=3)
    answers, num_prefilled = num_prompt_tokens(engine, [long, late])
    assert_same(answers, alone)
    assert num_prefilled == 2
    assert [answer.num_cached_tokens for answer in answers] == [149, 149]


@pytest.mark.parametrize("scope", ["another", None])
def test_nothing_is_shared_beyond_a_scope(engine: Engine, scope: str | None) -> None:
    (question,) = choices(100, 1, "scope")
    ask(engine, [question])
    for _ in range(2 if scope is None else 1):
        (answer,) = ask(engine, [dataclasses.replace(question, cache_scope=scope)])
        assert answer.num_cached_tokens == 0


def test_an_equal_page_after_another_beginning_is_not_shared(engine: Engine) -> None:
    """Keys and values depend on everything before them."""
    page = prompt(PAGE_SIZE, seed=4)
    ask(engine, [Question(prompt(PAGE_SIZE, seed=5) + page + (1, 2), cache_scope="order")])
    question = Question(prompt(PAGE_SIZE, seed=6) + page + (1, 2), cache_scope="order")
    answers = ask(engine, [question])
    assert answers[0].num_cached_tokens == 0
    assert_same(answers, ask(engine, cold([question])))


def test_a_scored_prompt_is_always_read_whole(engine: Engine) -> None:
    questions = [dataclasses.replace(question, scores_prompt=True) for question in choices(100, 3, "scored")]
    answers, num_prefilled = num_prompt_tokens(engine, questions)
    assert num_prefilled == 300
    assert answers[0].prompt_logprobs == answers[1].prompt_logprobs == answers[2].prompt_logprobs
    assert len(answers[0].prompt_logprobs) == 99


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_what_free_pages_hold_changes_nothing(engine: Engine, pages: EnginePages, value: float) -> None:
    """Requests of every length, so that the ends of their last pages are read too."""
    questions = cold(
        [
            Question(prompt(length), joins_after=place % 3)
            for place, length in enumerate((1, 31, 33, 64, 100, 300))
        ]
    )
    pages.fill_free(0.0)
    expected = ask(engine, questions)
    assert pages.fill_free(value) > 0
    answers = ask(engine, questions)
    assert_same(answers, expected)
    # Alone, all else in the pool is free.
    pages.fill_free(value)
    assert_same(ask_alone(engine, questions[1:3]), expected[1:3])


def test_what_lies_behind_a_copied_part_changes_nothing(engine: Engine, pages: EnginePages) -> None:
    question = Question(prompt(40), dataclasses.replace(GREEDY, max_tokens=12), cache_scope="behind a part")
    expected = ask(engine, [question])
    pages.fill_behind("behind a part", question.prompt_ids, np.nan)
    pages.fill_free(np.nan)
    answers = ask(engine, [question])
    assert answers[0].num_cached_tokens == 39
    assert_same(answers, expected)
