"""Speculation changes no token: the same bundle with drafts and without, on the real engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from pydantic import ValidationError
from tiny.bundles import model_config
from tiny.engines import GREEDY, Answer, Binder, Question, ask, ask_alone, load_engine
from tiny.pages_of_engine import EnginePages
from tiny.prompts import prompt
from tiny.references import assert_same

from vinfer.bundle.directory import read_manifest
from vinfer.bundle.manifest import Platform
from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.plan import plan_build
from vinfer.config import KVCacheConfig, ModelConfig, SpeculationConfig
from vinfer.engine.loading.compile_count import CompileCounter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

NAME = "llama-speculating"
NUM_PAGES = 9
"""Of 32 tokens; one of the requests below holds up to 5, and six of them run at once."""
EOS = 257
FAVOURITES = ((65, 6.0), (66, 6.0), (67, 6.0))
"""Biases with which even a random model repeats itself, now and then."""
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0, logit_bias=FAVOURITES)

pytestmark = pytest.mark.bundles(NAME)


@pytest.fixture(scope="module")
def engine(engine_of: Callable[[str], Engine]) -> Engine:
    return engine_of(NAME)


@pytest.fixture(scope="module")
def plain(bundle_of: Callable[[str], Path]) -> Iterator[Engine]:
    engine = load_engine(bundle_of(NAME), model_config(NAME).model_copy(update={"speculation": None}))
    yield engine
    assert engine.stats().spec_decode_num_drafts_total == 0
    engine.stop()


@pytest.fixture(scope="module")
def model(reference_of: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    return reference_of("llama")


def repeating(length: int, seed: int = 0) -> tuple[int, ...]:
    """Return a prompt that ends in something that it began with."""
    return (prompt(9, seed) * (length // 9 + 1))[:length]


def questions(first_seed: int = 0, **changes: Any) -> list[Question]:
    """Return greedy and sampled questions with some other parameters."""
    return [
        Question(
            repeating(20 + 7 * place, seed=first_seed + place),
            dataclasses.replace(GREEDY if place % 2 else SAMPLED, seed=first_seed + place, **changes),
            cache_scope=None,
        )
        for place in range(4)
    ]


def num_accepted(engine: Engine) -> int:
    return engine.stats().spec_decode_num_accepted_tokens_total


KINDS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "without logprobs": {"top_logprobs": None},
    "truncated": {"top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "penalised": {"repetition_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.05},
    "stopped": {"stop_token_ids": (66,), "min_tokens": 20},
    "at once": {"max_tokens": 1},
    "short": {"max_tokens": 7},
}


def without_logprobs(answers: Sequence[Answer]) -> list[tuple[list[int], str | None]]:
    return [(answer.token_ids, answer.finish_reason) for answer in answers]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer_is_the_same(
    engine: Engine, plain: Engine, model: PreTrainedModel, kind: str
) -> None:
    asked = questions(**KINDS[kind])
    before = num_accepted(engine)
    answers, expected = ask_alone(engine, asked), ask_alone(plain, asked)
    if kind == "without logprobs":
        assert without_logprobs(answers) == without_logprobs(expected)
    else:
        assert_same(model, asked, answers, expected)
    # The few tokens of a short answer may all be on the way before the first is read.
    assert kind in ("at once", "short") or num_accepted(engine) > before


def test_every_length_of_an_answer_is_reached(engine: Engine, plain: Engine, model: PreTrainedModel) -> None:
    """A draft never goes beyond the last token, nor beyond the longest request."""
    asked = [
        Question(repeating(500), dataclasses.replace(SAMPLED, max_tokens=length)) for length in range(1, 13)
    ]
    assert_same(model, asked, ask_alone(engine, asked), ask_alone(plain, asked))


@pytest.mark.parametrize("num_together", [2, 4, 6])
def test_a_crowd_is_the_same(
    engine: Engine, plain: Engine, model: PreTrainedModel, bundle_of: Callable[[str], Path], num_together: int
) -> None:
    """Some join later; one in four is constrained; six are more than verify takes."""
    grammar = Binder(bundle_of(NAME)).grammar("regex", "[A-C]{40}")
    asked = [
        dataclasses.replace(question, joins_after=3 * (place % 2), grammar=grammar if place == 3 else None)
        for place, question in enumerate((questions() + questions(9))[:num_together])
    ]
    asked = [
        dataclasses.replace(each, params=dataclasses.replace(each.params, stop_token_ids=(EOS,)))
        if each.grammar is not None
        else each
        for each in asked
    ]
    before = num_accepted(engine)
    assert_same(model, asked, ask(engine, asked), ask(plain, asked))
    assert num_accepted(engine) > before


OBJECT = {
    "type": "object",
    "properties": {"first name": {"enum": ["Anna", "Anton", "Bert"]}, "year of birth": {"type": "integer"}},
    "required": ["first name", "year of birth"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("num_together", [1, 4])
@pytest.mark.parametrize(
    "changes", [{}, {"repetition_penalty": 1.2, "frequency_penalty": 0.1}, {"min_tokens": 45}]
)
def test_a_constrained_answer_is_the_same_and_what_its_grammar_forces_is_drafted(
    engine: Engine,
    plain: Engine,
    model: PreTrainedModel,
    bundle_of: Callable[[str], Path],
    changes: dict[str, Any],
    num_together: int,
) -> None:
    """Its prompts repeat nothing, and every position of a draft has its own mask."""
    stops = {"stop_token_ids": (EOS,), "max_tokens": 60, **changes}
    binder = Binder(bundle_of(NAME))

    def asked() -> list[Question]:
        return [
            Question(
                prompt(11, place),
                dataclasses.replace(GREEDY if place % 2 else SAMPLED, seed=place, **stops),
                cache_scope=None,
                grammar=binder.grammar("json_schema", json.dumps(OBJECT)),
            )
            for place in range(num_together)
        ]

    before = num_accepted(engine)
    answers = ask(engine, asked())
    assert_same(model, asked(), answers, ask(plain, asked()))
    assert all(binder.text(answer).startswith('{"first name": "') for answer in answers)
    # Four tokens are verified at once.
    assert num_accepted(engine) - before >= 20 * num_together


def test_choices_of_one_prompt_are_the_same(engine: Engine, plain: Engine, model: PreTrainedModel) -> None:
    asked = [
        Question(repeating(70), dataclasses.replace(SAMPLED, seed=seed), cache_scope="choices")
        for seed in range(4)
    ]
    answers = ask(engine, asked)
    assert_same(model, asked, answers, ask(plain, asked))
    assert [answer.num_cached_tokens for answer in answers] == [0, 69, 69, 69]


@pytest.mark.parametrize("length", range(27, 36))
def test_pages_have_no_token_of_a_wrong_draft(
    engine: Engine, plain: Engine, model: PreTrainedModel, bundle_of: Callable[[str], Path], length: int
) -> None:
    """Drafts cross the edge of a page; the next turn of the conversation finds the pages of the answer."""
    pages = EnginePages(engine, bundle_of(NAME))
    pages.fill_free(np.nan)
    first = Question(repeating(length), SAMPLED, cache_scope=f"turns {length}")
    answers = ask(engine, [first])
    assert_same(model, [first], answers, ask(plain, [first]))
    turn = dataclasses.replace(first, prompt_ids=(*first.prompt_ids, *answers[0].token_ids, 65, 66))
    pages.fill_free(np.nan)
    found = ask(engine, [turn])
    assert_same(model, [turn], found, ask(plain, [dataclasses.replace(turn, cache_scope=None)]))
    num_written = len(turn.prompt_ids) - 3
    assert found[0].num_cached_tokens == num_written // 32 * 32
    pages.wait_until_idle()


def test_a_pool_that_is_nearly_full(
    plain: Engine, model: PreTrainedModel, bundle_of: Callable[[str], Path]
) -> None:
    cramped = {"max_model_len": None, "kv_cache": KVCacheConfig(pages=NUM_PAGES)}
    engine = load_engine(bundle_of(NAME), model_config(NAME).model_copy(update=cramped))
    try:
        pages = EnginePages(engine, bundle_of(NAME))
        pages.fill_free(np.nan)
        asked = [
            Question(repeating(60 + seed, seed), dataclasses.replace(SAMPLED, seed=seed)) for seed in range(6)
        ]
        assert_same(model, asked, ask(engine, asked), ask(plain, asked))
        assert engine.stats().num_preemptions_total > 0
        assert num_accepted(engine) > 0
        pages.wait_until_idle()
    finally:
        engine.stop()


def test_its_programs_are_in_the_bundle_and_nothing_compiles(
    engine: Engine, bundle_of: Callable[[str], Path]
) -> None:
    manifest = read_manifest(bundle_of(NAME))
    verify = {(p.shape.rows, p.shape.length) for p in manifest.programs if p.shape.kind == "verify"}
    assert verify == {(1, 5), (2, 5), (4, 5)}
    counter = CompileCounter()
    counter.mark_ready()
    before = engine.stats()
    for num_together in (1, 2, 4):
        ask(engine, questions()[:num_together])
    after = engine.stats()
    assert counter.num_post_ready == 0
    assert after.spec_decode_num_draft_tokens_total > before.spec_decode_num_draft_tokens_total
    drafts, tokens, accepted = (
        after.spec_decode_num_drafts_total,
        after.spec_decode_num_draft_tokens_total,
        after.spec_decode_num_accepted_tokens_total,
    )
    assert drafts <= tokens <= 4 * drafts
    assert 0 < accepted < tokens


@pytest.mark.parametrize(
    ("platform", "num_slots", "rows"),
    [("cpu", 1, [1]), ("cpu", 3, [1, 2, 3]), ("cpu", 64, [1, 2, 4]), ("cuda", 64, [1, 4, 16, 64])],
)
def test_drafts_of_few_slots_are_verified_on_a_cpu(
    platform: Platform, num_slots: int, rows: list[int]
) -> None:
    changes = {"speculation": SpeculationConfig(tokens=3), "num_slots": num_slots}
    model = model_config(NAME).model_copy(update=changes)
    plan = plan_build(
        model, resolve_source(model.source), where="models[0]", platform=platform, num_devices=1
    )
    assert [(s.rows, s.length) for s in plan.programs if s.kind == "verify"] == [(each, 4) for each in rows]


def test_a_deterministic_model_does_not_speculate() -> None:
    changes = {"deterministic": True, "precompile": ({"batch_size": 1, "prefill_length": 32},)}
    stated = model_config(NAME).model_dump(exclude={"precompile"}) | changes
    with pytest.raises(ValidationError, match=r"is set; deterministic is true, .*: remove one"):
        ModelConfig.model_validate(stated)
    ModelConfig.model_validate(stated | {"speculation": None})
