"""With far too few pages, every request still answers as with enough, on the real engine."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.bundles import model_config
from tiny.engines import GREEDY, Binder, Question, ask, load_engine
from tiny.pages_of_engine import EnginePages
from tiny.prompts import prompt
from tiny.references import assert_same

from vinfer.config import KVCacheConfig

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

NUM_PAGES = 9
"""Of 32 tokens; one of the requests below holds up to 6, and six of them run at once."""
SAMPLED = dataclasses.replace(
    GREEDY,
    temperature=1.0,
    top_p=0.95,
    repetition_penalty=1.1,
    presence_penalty=0.3,
    frequency_penalty=0.2,
)
EOS = 257
TOLERANCE = 1e-5

pytestmark = pytest.mark.bundles("llama")


@pytest.fixture(scope="module")
def roomy(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("llama")


@pytest.fixture(scope="module")
def cramped(bundle_of: Callable[[str], Path]) -> Iterator[Engine]:
    cramped = {"max_model_len": None, "kv_cache": KVCacheConfig(pages=NUM_PAGES)}
    model = model_config("llama").model_copy(update=cramped)
    engine = load_engine(bundle_of("llama"), model)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def pages(cramped: Engine, bundle_of: Callable[[str], Path]) -> EnginePages:
    return EnginePages(cramped, bundle_of("llama"))


def crowd(seed: int, binder: Binder, *, scope: str | None) -> list[Question]:
    """Return eight requests with long answers: greedy, sampled and constrained, of random lengths."""
    draw = random.Random(seed)
    grammar = binder.grammar("regex", "[a-z]{90}")
    questions = []
    for place in range(8):
        params = dataclasses.replace(
            GREEDY if place % 3 == 0 else SAMPLED,
            seed=draw.randrange(2**63),
            max_tokens=draw.randrange(60, 90),
        )
        is_constrained = place % 4 == 1
        if is_constrained:
            params = dataclasses.replace(params, stop_token_ids=(EOS,))
        questions.append(
            Question(
                prompt(draw.randrange(1, 90), seed=seed),
                params,
                joins_after=draw.randrange(3),
                cache_scope=scope,
                grammar=grammar if is_constrained else None,
            )
        )
    return questions


@pytest.mark.parametrize("scope", ["pressure", None])
@pytest.mark.parametrize("seed", range(3))
def test_preempted_requests_answer_as_with_enough_memory(
    roomy: Engine,
    cramped: Engine,
    pages: EnginePages,
    bundle_of: Callable[[str], Path],
    reference_of: Callable[[str], PreTrainedModel],
    seed: int,
    scope: str | None,
) -> None:
    questions = crowd(seed, Binder(bundle_of("llama")), scope=scope)
    expected = ask(roomy, [dataclasses.replace(question, cache_scope=None) for question in questions])
    before = cramped.stats().num_preemptions_total
    assert pages.fill_free(np.nan) > 0
    answers = ask(cramped, questions)
    assert_same(reference_of("llama"), questions, answers, expected)
    assert cramped.stats().num_preemptions_total > before
    pages.wait_until_idle()


def test_choices_of_one_prompt_give_way_to_each_other(
    roomy: Engine, cramped: Engine, pages: EnginePages, reference_of: Callable[[str], PreTrainedModel]
) -> None:
    """Their common pages are given back once only, and their copied page belongs to each."""
    questions = [
        Question(prompt(70), dataclasses.replace(SAMPLED, seed=seed, max_tokens=80), cache_scope="choices")
        for seed in range(8)
    ]
    expected = ask(roomy, [dataclasses.replace(question, cache_scope=None) for question in questions])
    before = cramped.stats().num_preemptions_total
    assert_same(reference_of("llama"), questions, ask(cramped, questions), expected)
    assert cramped.stats().num_preemptions_total > before
    pages.wait_until_idle()


def test_scored_prompts_are_scored_once(roomy: Engine, cramped: Engine, pages: EnginePages) -> None:
    """What a preempted request has been told is not told again."""
    questions = [
        Question(
            prompt(60 + seed),
            dataclasses.replace(SAMPLED, seed=seed, max_tokens=80),
            scores_prompt=True,
            cache_scope="scores",
        )
        for seed in range(6)
    ]
    before = cramped.stats().num_preemptions_total
    answers, expected = ask(cramped, questions), ask(roomy, questions)
    assert cramped.stats().num_preemptions_total > before
    for answer, other in zip(answers, expected, strict=True):
        assert answer.token_ids == other.token_ids
        assert len(answer.prompt_logprobs) == len(other.prompt_logprobs)
        np.testing.assert_allclose(
            [line.logprob for line in answer.prompt_logprobs],
            [line.logprob for line in other.prompt_logprobs],
            rtol=TOLERANCE,
            atol=TOLERANCE,
        )
    pages.wait_until_idle()


def test_pages_that_were_needed_are_not_found_again(
    cramped: Engine, pages: EnginePages, reference_of: Callable[[str], PreTrainedModel]
) -> None:
    first = Question(prompt(70, seed=9), dataclasses.replace(GREEDY, max_tokens=4), cache_scope="evicted")
    (expected,) = ask(cramped, [first])
    (again,) = ask(cramped, [first])
    assert again.num_cached_tokens == 69
    # One request that fills the whole pool.
    ask(cramped, [Question(prompt(220, seed=9), dataclasses.replace(GREEDY, max_tokens=60))])
    (answer,) = ask(cramped, [first])
    assert answer.num_cached_tokens == 0
    assert_same(reference_of("llama"), [first], [answer], [expected])
    pages.wait_until_idle()


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.bundles(name)) for name in ("gemma3", "gpt-oss")]
)
def test_windows_give_pages_back(
    family: str,
    bundle_of: Callable[[str], Path],
    lent_engine: Callable[[str], AbstractContextManager[Engine]],
    reference_of: Callable[[str], PreTrainedModel],
) -> None:
    """A request holds the pages of its window and of one dispatch; those given back may be overwritten."""
    directory = bundle_of(family)
    question = Question(prompt(130), dataclasses.replace(GREEDY, max_tokens=100), cache_scope=None)
    with lent_engine(family) as engine:
        pages = EnginePages(engine, directory)
        expected = ask(engine, [question])
        pages.fill_free(np.nan)
        with pages.watched() as held:
            answers = ask(engine, [question, dataclasses.replace(question, prompt_ids=prompt(150))])
        pages.wait_until_idle()
        plan = pages.plan
    assert_same(reference_of(family), [question], answers[:1], expected)
    most = [max(of_group) for of_group in zip(*held, strict=True)]
    of_row = [plan.pages_of_row(group) for group in plan.groups]
    assert len(most) == 2
    # The first group holds everything, the other at most what its window needs.
    assert most[0] == -(-(150 + 100) // plan.page_size) == of_row[0]
    assert 1 < most[1] <= of_row[1] < of_row[0]
