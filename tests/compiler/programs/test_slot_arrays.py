"""A model whose layers are no attention over keys and values: a state per slot, and one latent per position.

Its next token is worked out by hand from all tokens so far. So a state that another request left behind, that
was not there, or that a padded token changed, is a wrong answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tiny.engines import Answer, Question, ask

from vinfer.bundle.manifest import ArraySpec, KVArray, ProgramSpec, SlotArray, argument_specs
from vinfer.bundle.program_table import ProgramTable
from vinfer.bundle.programs import ProgramShape, plan_programs
from vinfer.compiler.kv_cache import KVCache, KVCacheView, LayerCache, Rows, SlotCache, SlotView, copy_pages
from vinfer.compiler.programs import Programs
from vinfer.compiler.state import state_specs
from vinfer.engine.engine import Engine
from vinfer.engine.kv_cache.pages import ShardPages
from vinfer.engine.loading.loaded_model import ALL_ALLOWED, LoadedModel
from vinfer.engine.program import Program
from vinfer.engine.request import SamplingParams
from vinfer.engine.runner import Runner
from vinfer.engine.scheduler import Scheduler
from vinfer.engine.tenants import TenantLimits
from vinfer.errors import BuildError

pytestmark = pytest.mark.compiles

VOCAB, MAX_MODEL_LEN, NUM_SLOTS, PAGE_SIZE = 31, 64, 3, 4
PAGES_OF_ROW = MAX_MODEL_LEN // PAGE_SIZE
LATENT_DIM, VALUE_DIM, STATE_SHAPE = 6, 3, (2, 5)
LAYERS = (
    SlotCache(num_arrays=1),
    LayerCache(group=0, window=None, num_kv_heads=1, block_len=8, latent_value_dim=VALUE_DIM),
)
KV = (
    SlotArray(name="layers.0.state", shape=STATE_SHAPE, dtype="float32", axes=(None, None)),
    KVArray(name="layers.1.latent", group=0, width=LATENT_DIM, dtype="float32", axes=("dp", None, None)),
)
SHAPES = plan_programs(prefill_shapes=[(1, 8), (2, 8)], slot_buckets=(1, NUM_SLOTS), steps=4)


def following(tokens: tuple[int, ...]) -> int:
    """Return the token after some others."""
    state = 0
    for token in tokens:
        state = (3 * state + token + 1) % VOCAB
    return (state + sum(tokens)) % VOCAB


def expected(question: Question) -> list[int]:
    tokens = question.prompt_ids
    while len(tokens) < len(question.prompt_ids) + question.params.max_tokens:
        tokens = (*tokens, following(tokens))
    return list(tokens[len(question.prompt_ids) :])


class HandMade:
    """`following` as a `Model`: the state is in the first layer, the sum in the second."""

    max_model_len = MAX_MODEL_LEN
    vocab_size = VOCAB
    hidden_size = 1

    def forward(
        self, weights: Any, kv: Any, tokens: jax.Array, rows: Rows, images: Any = None
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        cache = KVCache(kv, rows, LAYERS)
        states = self._recurrent(cache[0], tokens, rows.positions < MAX_MODEL_LEN)
        sums = self._attend(cache[1], tokens, rows.positions + 1)
        return cache.arrays(), ((states + sums) % VOCAB)[..., None]

    def _recurrent(self, view: KVCacheView | SlotView, tokens: jax.Array, is_token: jax.Array) -> jax.Array:
        assert isinstance(view, SlotView)

        def step(state: jax.Array, at: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            token, is_token = (each[:, None, None] for each in at)
            state = jnp.where(is_token, (3 * state + token + 1) % VOCAB, state)
            return state, state[:, 0, 0]

        (state,) = view.read()
        state, states = lax.scan(step, state, (tokens.T, is_token.T))
        view.write(state)
        return states.T

    def _attend(self, view: KVCacheView | SlotView, tokens: jax.Array, num_seen: jax.Array) -> jax.Array:
        assert isinstance(view, KVCacheView)
        # The values are the tokens; all scores are equal, so the output is their mean.
        latent = jnp.ones((*tokens.shape, 1, LATENT_DIM)).at[..., 0, 0].set(tokens)
        *_, written, _ = view.concatenate_to_cache(key=latent, value=latent[..., :VALUE_DIM], mask_info=None)
        query = jnp.zeros((*tokens.shape, 2, LATENT_DIM))
        mean = written.attend(query, scale=1.0, soft_cap=None, sinks=None)
        return jnp.round(mean[:, :, 1, 0] * num_seen)

    def copy_pages(self, kv: Any, sources: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        return copy_pages(kv, sources, targets, LAYERS)

    def logits(self, weights: Any, hidden: jax.Array) -> jax.Array:
        return -((jnp.arange(VOCAB) - hidden) ** 2)


PROGRAMS = Programs(
    HandMade(),
    num_slots=NUM_SLOTS,
    num_tokens=VOCAB,
    rows_are_slots=False,
    page_size=PAGE_SIZE,
    kv_groups=[array.group for array in KV if isinstance(array, KVArray)],
    keeps_slot_arrays=True,
)
STATE = state_specs(VOCAB, MAX_MODEL_LEN, NUM_SLOTS)


def kv_specs(num_pages: int) -> tuple[ArraySpec, ...]:
    return tuple(
        array.spec(num_slots=NUM_SLOTS)
        if isinstance(array, SlotArray)
        else array.spec(num_pages=num_pages, page_size=PAGE_SIZE)
        for array in KV
    )


def compiled(shape: ProgramShape, num_pages: int) -> Program:
    inputs = PROGRAMS.inputs(shape)
    specs = argument_specs(shape, inputs, weights=(), kv=kv_specs(num_pages), state=STATE, images=None)
    abstract = [
        tuple(jax.ShapeDtypeStruct(spec.shape, jnp.dtype(spec.dtype)) for spec in group) for group in specs
    ]
    jitted = jax.jit(PROGRAMS.function(shape), donate_argnums=(1, 2), keep_unused=True)
    spec = ProgramSpec(shape=shape, file="", inputs=inputs, outputs=PROGRAMS.outputs(shape))
    return Program(spec, jitted.lower(*abstract).compile())


@pytest.fixture(scope="module", params=[NUM_SLOTS * PAGES_OF_ROW, PAGES_OF_ROW], ids=["roomy", "scarce"])
def programs(request: pytest.FixtureRequest) -> tuple[int, list[Program]]:
    """Return a number of pages, and all programs compiled for it."""
    return request.param, [compiled(shape, request.param) for shape in SHAPES]


def loaded(num_pages: int, programs: list[Program]) -> LoadedModel:
    """Return the model; whatever the cache holds before the first request is NaN."""
    words = -(-VOCAB // 32)
    return LoadedModel(
        weights=(),
        kv=tuple(jnp.full(spec.shape, jnp.nan) for spec in kv_specs(num_pages)),
        state=tuple(jnp.full(spec.shape, spec.initial, spec.dtype) for spec in STATE),
        programs=programs,
        open_masks={
            (shape.rows, words): np.full((shape.rows, words), ALL_ALLOWED, np.uint32)
            for shape in SHAPES
            if shape.rows
        },
        dispatch_lock=threading.Lock(),
    )


def started(
    num_pages: int, programs: list[Program], *, keeps_slot_arrays: bool = True
) -> tuple[Engine, Scheduler]:
    table = ProgramTable(SHAPES)
    pages = ShardPages(0, [num_pages], windows=[None], page_size=PAGE_SIZE, pages_of_row=PAGES_OF_ROW)
    scheduler = Scheduler(
        programs=table, num_slots=NUM_SLOTS, pages=[pages], keeps_slot_arrays=keeps_slot_arrays
    )
    engine = Engine(
        name="hand-made",
        runner=Runner(loaded(num_pages, programs), num_slots=NUM_SLOTS, rows_are_slots=False),
        scheduler=scheduler,
        num_slots=NUM_SLOTS,
        max_model_len=MAX_MODEL_LEN,
        limits=TenantLimits(max_queue=100, max_queue_per_tenant=100, max_running_per_tenant=NUM_SLOTS),
    )
    engine.start()
    return engine, scheduler


def questions() -> list[Question]:
    """Return more requests than slots, some longer than a chunk, some equal, all with one beginning."""
    draw = np.random.default_rng(0)
    start = tuple(range(5, 14))
    prompts = [(*start, *map(int, draw.integers(0, VOCAB, length))) for length in (0, 1, 7, 8, 20, 3, 30, 11)]
    greedy = [SamplingParams(max_tokens=max_tokens, temperature=0.0) for max_tokens in (1, 24, 9, 33)]
    asked = [Question(prompt, greedy[place % 4]) for place, prompt in enumerate(prompts)]
    return [*asked, asked[1], asked[2]]


def tokens_of(answers: list[Answer]) -> Iterator[list[int]]:
    return (answer.token_ids for answer in answers)


def test_every_answer_follows_from_its_own_tokens(programs: tuple[int, list[Program]]) -> None:
    engine, scheduler = started(*programs)
    asked = questions()
    try:
        answers = ask(engine, asked)
    finally:
        engine.stop()
    assert list(tokens_of(answers)) == list(map(expected, asked))
    assert not any(answer.num_cached_tokens for answer in answers)
    assert scheduler.num_prefix_queries == 0
    # With pages for one request of full length, some lost theirs and were computed again.
    assert (scheduler.num_preemptions > 0) == (programs[0] == PAGES_OF_ROW)
    scheduler.check_integrity()


def test_pages_of_others_would_not_be_enough(programs: tuple[int, list[Program]]) -> None:
    """The reason for `keeps_slot_arrays`: what a page holds is right, and the state before it is missing."""
    engine, scheduler = started(*programs, keeps_slot_arrays=False)
    asked = questions()
    try:
        answers = ask(engine, asked)
    finally:
        engine.stop()
    assert scheduler.num_prefix_hits > 0
    assert list(tokens_of(answers)) != list(map(expected, asked))


def test_programs_take_the_arrays_and_give_them_back(programs: tuple[int, list[Program]]) -> None:
    """Nothing is copied: each program's results are in the memory of what it was given."""
    model = loaded(*programs)
    for shape in SHAPES:
        before = model.kv
        inputs = {name: model.filled(shape, name, 0) for name in model.inputs_of(shape)}
        model.run(shape, inputs)
        assert [array.is_deleted() for array in before] == [shape.uses_kv] * len(KV)


@pytest.mark.parametrize("kind", ["embed", "verify"])
def test_what_cannot_be_right_is_refused(kind: Any) -> None:
    with pytest.raises(BuildError, match="keeps a state per slot"):
        PROGRAMS.function(ProgramShape(kind=kind, rows=1, length=8))
