"""The real engine with grammars: every answer obeys its grammar, and other requests are unaffected.

The model is random, so only the masks make its answers JSON.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.engines import GREEDY, Binder, Question, ask, ask_alone
from tiny.prompts import prompt
from tiny.schemas import random_schema

from vinfer.engine.loading.compile_count import CompileCounter
from vinfer.engine.request import SamplingParams

if TYPE_CHECKING:
    from vinfer.engine.engine import Engine
    from vinfer.engine.grammar import GrammarKind

pytestmark = pytest.mark.bundles("llama")

NUM_SCHEMAS = 60
MAX_TOKENS = 300
EOS = 257

FORMS: dict[str, tuple[GrammarKind, str, str]] = {
    "choice": ("choice", json.dumps(["red", "green", "</s>", 'say "hi"']), 'red|green|</s>|say "hi"'),
    "regex": ("regex", "[a-f]{3,6}-[0-9]{2}", "[a-f]{3,6}-[0-9]{2}"),
    "lark": ("lark", 'start: "x"~2..4 y\ny: "(" y ")" | /[01]{3}/', r"x{2,4}\(*[01]{3}\)*"),
    "forced": ("regex", "only this, </s> and all", "only this, </s> and all"),
    "empty": ("regex", "", ""),
}


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of("llama")


@pytest.fixture(scope="module")
def binder(bundle_of: Callable[[str], Path]) -> Binder:
    return Binder(bundle_of("llama"))


def params(seed: int, **changes: Any) -> SamplingParams:
    values = {"max_tokens": MAX_TOKENS, "temperature": 1.0, "seed": seed, "stop_token_ids": (EOS,)}
    return SamplingParams(**{**values, **changes})


def form_questions(binder: Binder) -> list[Question]:
    """Return questions for every form, with prompts of one and several chunks, greedy and sampled."""
    ways: tuple[dict[str, Any], ...] = (
        {"temperature": 0.0},
        {},
        {"top_k": 3, "top_p": 0.8, "temperature": 1.5},
        {"repetition_penalty": 1.5, "logit_bias": ((EOS, 50.0), (97, -5.0))},
    )
    return [
        Question(
            prompt(length, seed=place),
            params(place, max_tokens=60, **ways[place % len(ways)]),
            grammar=binder.grammar(kind, text),
        )
        for place, (length, (kind, text, _)) in enumerate(
            (length, form) for length in (1, 33, 200) for form in FORMS.values()
        )
    ]


def test_every_answer_of_a_random_schema_is_json_that_validates(engine: Engine, binder: Binder) -> None:
    draw = random.Random(20)
    schemas = [random_schema(draw) for _ in range(NUM_SCHEMAS)]
    questions = [
        Question(
            prompt(1 + place % 90, seed=place),
            params(place, temperature=(0.0, 1.0, 2.0)[place % 3]),
            grammar=binder.grammar("json_schema", json.dumps(schema)),
        )
        for place, schema in enumerate(schemas)
    ]
    answers = ask(engine, questions)
    num_complete = 0
    for schema, answer in zip(schemas, answers, strict=True):
        if answer.finish_reason == "stop":
            num_complete += 1
            assert answer.token_ids[-1] == EOS
            jsonschema.validate(json.loads(binder.text(answer)), schema)
    assert num_complete >= 0.95 * NUM_SCHEMAS
    # The answers differ, so they are not one answer for all.
    assert len({binder.text(answer) for answer in answers}) > NUM_SCHEMAS / 2


@pytest.mark.parametrize("prompts", ["prefilled", "scored", "shared"])
def test_choices_expressions_and_grammars_hold_exactly(engine: Engine, binder: Binder, prompts: str) -> None:
    questions = form_questions(binder)
    if prompts == "scored":
        questions = [
            dataclasses.replace(
                question,
                params=dataclasses.replace(question.params, top_logprobs=1),
                scores_prompt=True,
            )
            for question in questions
        ]
    if prompts == "shared":
        # All forms of one length share a prompt.
        questions = [
            dataclasses.replace(
                question,
                prompt_ids=prompt(len(question.prompt_ids)),
                cache_scope=str(len(question.prompt_ids)),
            )
            for question in questions
        ]
    patterns = [pattern for _ in range(3) for _, _, pattern in FORMS.values()]
    answers = ask(engine, questions)
    for pattern, answer in zip(patterns, answers, strict=True):
        if answer.finish_reason == "length":
            # Only nested parentheses can continue for so long.
            assert re.match(r"x{2,4}\(", binder.text(answer))
            continue
        assert re.fullmatch(pattern, binder.text(answer)), (pattern, binder.text(answer))
        assert answer.finish_reason == "stop"
    scored = [len(answer.prompt_logprobs) for answer in answers]
    lengths = [len(question.prompt_ids) - 1 for question in questions]
    assert scored == (lengths if prompts == "scored" else [0] * len(answers))


def test_a_crowd_says_what_each_one_says_alone(engine: Engine, binder: Binder) -> None:
    """Batch constrained and free requests, greedy and seeded; the free ones join later and outlast them."""
    constrained = form_questions(binder)
    free = [
        Question(
            prompt(40 + place), params(place, max_tokens=50, temperature=float(place % 2), stop_token_ids=())
        )
        for place in range(len(constrained))
    ]
    mixed = [question for pair in zip(constrained, free, strict=True) for question in pair]
    alone, together = ask_alone(engine, mixed), ask(engine, mixed)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]
    assert [answer.finish_reason for answer in together] == [answer.finish_reason for answer in alone]


def test_seeds_decide(engine: Engine, binder: Binder) -> None:
    grammar = binder.grammar("regex", "[a-z]{20}")

    def texts(seeds: tuple[int, ...]) -> list[str]:
        questions = [Question(prompt(9), params(seed), grammar=grammar) for seed in seeds]
        return [binder.text(answer) for answer in ask(engine, questions)]

    assert texts((1, 2, 3)) == texts((1, 2, 3))
    assert len(set(texts((1, 2, 3)))) == 3


def test_logprobs_are_of_the_raw_logits(engine: Engine, binder: Binder) -> None:
    """The same tokens give the same values as a prompt without a grammar."""
    grammar = binder.grammar("regex", "[a-f]{4}")
    start = prompt(20)
    greedy = dataclasses.replace(GREEDY, stop_token_ids=(EOS,))
    constrained = ask(engine, [Question(start, greedy, grammar=grammar)])[0]
    assert len(constrained.logprobs) == len(constrained.token_ids)
    for place, logprobs in enumerate(constrained.logprobs):
        so_far = (*start, *constrained.token_ids[:place])
        free = ask(engine, [Question(so_far, dataclasses.replace(GREEDY, max_tokens=1))])[0].logprobs[0]
        assert logprobs.top_ids == free.top_ids
        np.testing.assert_allclose(logprobs.top_logprobs, free.top_logprobs, atol=1e-4)
        known = dict(zip(free.top_ids, free.top_logprobs, strict=True))
        token = constrained.token_ids[place]
        assert logprobs.logprob == pytest.approx(known.get(token, logprobs.logprob), abs=1e-4)
    # The grammar forbade what the model preferred.
    assert any(
        logprobs.top_ids[0] != token
        for logprobs, token in zip(constrained.logprobs, constrained.token_ids, strict=True)
    )


def test_min_tokens_and_max_tokens(engine: Engine, binder: Binder) -> None:
    grammar = binder.grammar("regex", "a{1,40}")

    def length(**changes: Any) -> tuple[int, str | None]:
        # The end token is the most likely one.
        bias = ((EOS, 100.0),)
        question = Question(prompt(9), params(0, logit_bias=bias, **changes), grammar=grammar)
        answer = ask(engine, [question])[0]
        return len(binder.text(answer)), answer.finish_reason

    assert length() == (1, "stop")
    assert length(min_tokens=7) == (7, "stop")
    # The grammar ends the answer before min_tokens is reached.
    assert length(min_tokens=60) == (40, "stop")
    assert length(min_tokens=60, max_tokens=12) == (12, "length")


def test_a_token_to_stop_at_ends_the_answer_early(engine: Engine, binder: Binder) -> None:
    (comma,) = binder.encode(",")
    question = Question(
        prompt(9),
        params(0, stop_token_ids=(EOS, comma)),
        grammar=binder.grammar("regex", "[a-c]{3},[0-9]{3}"),
    )
    answer = ask(engine, [question])[0]
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == comma
    assert re.fullmatch("[a-c]{3},", binder.text(answer))


def test_grammars_compile_no_program(engine: Engine, binder: Binder) -> None:
    counter = CompileCounter()
    counter.mark_ready()
    ask(engine, form_questions(binder))
    assert counter.num_post_ready == 0
