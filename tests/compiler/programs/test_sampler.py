"""The sampler against NumPy in float64.

Kept sets are compared exactly. The logits lie on a grid of 1/4, so they are either equal or far apart; rows
in which a limit is within float32 rounding of a sum are omitted. Draws use fixed seeds, so results never
change by themselves; with other seeds, each chi-squared test would fail a correct sampler with odds of one in
a million.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from vinfer.compiler.sampler import (
    _inverse_cdf,
    _truncate,
    allowed_logits,
    keep_allowed,
    next_tokens,
    process_logits,
    sample,
    top_logprobs,
)
from vinfer.compiler.state import state_specs

pytestmark = pytest.mark.compiles

VOCAB = 300  # a multiple neither of the block size 128 nor of the 32 bits of a mask word
MAX_MODEL_LEN = 1000
FALSE_ALARM_ODDS = 1e-6

Array = npt.NDArray[Any]
Row = dict[str, Array]

process = jax.jit(process_logits, static_argnames="num_tokens")
draw = jax.jit(sample)
truncate = jax.jit(_truncate)
inverse_cdf = jax.jit(_inverse_cdf)
logprobs_of = jax.jit(top_logprobs)
keep = jax.jit(keep_allowed)
allow = jax.jit(allowed_logits, static_argnames="num_tokens")
following = jax.jit(next_tokens, static_argnames="num_tokens")


def make_row(num_rows: int, vocab: int = VOCAB, **values: Any) -> Row:
    """Return the initial state of some rows, changed by `values`, which are broadcast."""
    specs = {spec.name: spec for spec in state_specs(vocab, MAX_MODEL_LEN, num_rows)}
    row = {name: np.full(spec.shape, spec.initial, spec.dtype) for name, spec in specs.items()}
    for name, value in values.items():
        row[name][...] = value
    return row


def set_bias(row: Row, line: int, bias: dict[int, float]) -> None:
    row["logit_bias_ids"][line, : len(bias)] = list(bias)
    row["logit_bias_values"][line, : len(bias)] = list(bias.values())


def set_prompt(row: Row, is_in_prompt: Array) -> None:
    """Set the tokens of the prompts: bool [vocab] or [rows, vocab]."""
    num_words = row["prompt_mask"].shape[1]
    *lead, vocab = is_in_prompt.shape
    padding = np.zeros((*lead, num_words * 32 - vocab), np.bool_)
    bits = np.packbits(np.concatenate([is_in_prompt, padding], -1), axis=-1, bitorder="little")
    row["prompt_mask"][...] = bits.view(np.uint32)


def grid_logits(seed: int, num_rows: int, vocab: int = VOCAB) -> Array:
    """Return float32 [num_rows, vocab] with many ties and no near ties, from -10 to 10."""
    return (np.random.default_rng(seed).integers(-40, 41, (num_rows, vocab)) / 4).astype(np.float32)


# Penalties, bias, min_tokens.


def reference_process(logits: Array, row: Row, num_tokens: int) -> Array:
    logits = logits.astype(np.float64).copy()
    for line in range(len(logits)):
        for token in range(logits.shape[1]):
            count = row["output_counts"][line, token]
            value = logits[line, token]
            if count or row["prompt_mask"][line, token // 32] >> (token % 32) & 1:
                penalty = float(row["repetition_penalty"][line])
                value = value / penalty if value > 0 else value * penalty
            value -= count * float(row["frequency_penalty"][line])
            value -= (count > 0) * float(row["presence_penalty"][line])
            logits[line, token] = value
        for token, bias in zip(row["logit_bias_ids"][line], row["logit_bias_values"][line], strict=True):
            if token >= 0:
                logits[line, token] += bias
        if row["generated"][line] < row["min_tokens"][line]:
            logits[line, [token for token in row["stop_ids"][line] if token >= 0]] = -np.inf
        logits[line, num_tokens:] = -np.inf
    return logits


def row_in_the_middle(num_rows: int = 4) -> Row:
    """Return neutral parameters of requests with a prompt and some output."""
    random = np.random.default_rng(7)
    row = make_row(num_rows, generated=5)
    set_prompt(row, random.random((num_rows, VOCAB)) < 0.2)
    row["output_counts"][...] = random.integers(0, 4, (num_rows, VOCAB)) * (
        random.random((num_rows, VOCAB)) < 0.1
    )
    return row


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"repetition_penalty": (1.0, 1.3, 0.7, 2.0)},
        {"presence_penalty": (0.0, 0.5, -1.5, 2.0)},
        {"frequency_penalty": (0.0, 0.5, -1.5, 2.0)},
        {"min_tokens": (0, 5, 6, 100), "stop_ids": (3, 7, -1, -1) * 4},
        {
            "repetition_penalty": (1.2, 1.0, 0.9, 1.1),
            "presence_penalty": (0.3, -0.3, 0.0, 1.0),
            "frequency_penalty": (0.2, 0.0, -0.1, 0.4),
            "min_tokens": (9, 0, 9, 0),
            "stop_ids": (3, 7, -1, -1) * 4,
        },
    ],
    ids=lambda values: " ".join(values) or "none",
)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("num_tokens", [VOCAB, VOCAB - 13])
def test_logits_are_processed_as_numpy_does(values: dict[str, Any], biased: bool, num_tokens: int) -> None:
    row = row_in_the_middle()
    for name, value in values.items():
        row[name][...] = value
    if biased:
        set_bias(row, 1, {0: 5.0, 3: -100.0, VOCAB - 1: 100.0})
        set_bias(row, 2, {token: token / 10 for token in range(VOCAB)})
    logits = np.random.default_rng(3).normal(0, 4, (4, VOCAB)).astype(np.float32)
    expected = reference_process(logits, row, num_tokens)
    np.testing.assert_allclose(process(logits, row, num_tokens=num_tokens), expected, rtol=1e-6, atol=1e-5)


def test_what_each_penalty_counts() -> None:
    """Token 0 is in the prompt, 1 twice in the output, 2 in both, 3 nowhere; 4 to 6 with negative logits."""
    row = make_row(3, 8)
    set_prompt(row, np.isin(np.arange(8), [0, 2, 4]))
    row["output_counts"][:, [1, 2, 5]] = 2
    row["repetition_penalty"][0] = 2.0
    row["presence_penalty"][1] = 0.5
    row["frequency_penalty"][2] = 0.5
    logits = np.tile(np.array([4, 4, 4, 4, -4, -4, -4, 0], np.float32), (3, 1))
    assert np.asarray(process(logits, row, num_tokens=8)).tolist() == [
        [2, 2, 2, 4, -8, -8, -4, 0],
        [4, 3.5, 3.5, 4, -4, -4.5, -4, 0],
        [4, 3, 3, 4, -4, -5, -4, 0],
    ]


def test_neutral_parameters_leave_every_bit_beside_a_row_that_has_others() -> None:
    row = row_in_the_middle()
    row["repetition_penalty"][0] = 1.5
    row["presence_penalty"][0] = 0.5
    row["min_tokens"][0] = 50
    row["stop_ids"][:, 0] = 9
    set_bias(row, 0, {4: 4.0})
    logits = np.random.default_rng(3).normal(0, 4, (4, VOCAB)).astype(np.float32)
    processed = np.asarray(process(logits, row, num_tokens=VOCAB))
    assert np.array_equal(processed[1:], logits[1:])
    assert not np.array_equal(processed[0], logits[0])


# Grammars.


def mask_of(allowed: Array) -> Array:
    """Return the words of a bool [rows, vocab]; bits beyond the vocabulary are not set."""
    vocab = allowed.shape[1]
    padded = np.pad(allowed, ((0, 0), (0, -vocab % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32)


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, VOCAB, 320])
def test_only_what_a_grammar_allows_is_kept(vocab: int) -> None:
    allowed = np.random.default_rng(5).random((4, vocab)) < 0.3
    allowed[0] = True
    allowed[2] = False
    logits = grid_logits(1, 4, vocab)
    mask = mask_of(allowed)
    mask[0] = 0xFFFFFFFF
    assert np.array_equal(np.asarray(keep(logits, mask)), np.where(allowed, logits, -np.inf))


def test_rows_without_a_grammar_keep_every_bit() -> None:
    logits = np.random.default_rng(3).normal(0, 4, (4, VOCAB)).astype(np.float32)
    mask = np.full((4, -(-VOCAB // 32)), 0xFFFFFFFF, np.uint32)
    assert np.array_equal(np.asarray(keep(logits, mask)), logits)
    mask[1] = 0
    mask[1, 0] = 1
    kept = np.asarray(keep(logits, mask))
    assert np.array_equal(kept[[0, 2, 3]], logits[[0, 2, 3]])
    assert np.flatnonzero(np.isfinite(kept[1])).tolist() == [0]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"repetition_penalty": (1.0, 1.3, 1.0, 1.0)},
        {"presence_penalty": (0.0, 0.0, 0.5, 0.0)},
        {"frequency_penalty": (0.5, 0.0, 0.0, 0.0)},
        {"min_tokens": (0, 0, 0, 6), "stop_ids": 3},
        {"bias": {7: 2.5}},
        {"forbidden": [1, 2, 250]},
    ],
    ids=repr,
)
@pytest.mark.parametrize("num_tokens", [VOCAB, VOCAB - 20])
def test_one_row_that_needs_a_change_is_enough(values: dict[str, Any], num_tokens: int) -> None:
    """Each reason alone must reach the logits, which are otherwise passed on as they are."""
    row = row_in_the_middle()
    values = dict(values)
    allowed = np.ones((4, VOCAB), bool)
    allowed[1, values.pop("forbidden", [])] = False
    set_bias(row, 2, values.pop("bias", {}))
    for name, value in values.items():
        row[name][...] = np.reshape(value, (-1, *[1] * (row[name].ndim - 1)))
    mask = mask_of(allowed)
    mask[[0, 2, 3]] = 0xFFFFFFFF
    if allowed.all():
        mask[1] = 0xFFFFFFFF
    logits = grid_logits(4, 4)
    found = np.asarray(allow(logits, row, mask, num_tokens=num_tokens))
    np.testing.assert_array_equal(found, keep(process(logits, row, num_tokens=num_tokens), mask))
    expected = np.where(allowed, reference_process(logits, row, num_tokens), -np.inf)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
    untouched = np.where(np.arange(VOCAB) < num_tokens, logits, -np.inf)
    assert (found == untouched).all() == (not values and allowed.all() and (row["logit_bias_ids"] < 0).all())


def test_top_p_and_top_k_choose_among_what_the_grammar_allows() -> None:
    """The likely tokens are forbidden: if they were removed last, nothing would be left."""
    row = make_row(2, temperature=1.0, top_k=(2, 0), top_p=(1.0, 0.5), seed=(1, 2))
    logits = np.tile(np.linspace(0, 30, VOCAB, dtype=np.float32), (2, 1))
    allowed = np.zeros((2, VOCAB), bool)
    allowed[:, [3, 4, 5]] = True
    masked = np.asarray(keep(logits, mask_of(allowed)))
    kept = np.asarray(truncate(masked, row)) > 0
    assert [np.flatnonzero(line).tolist() for line in kept] == [[4, 5], [4, 5]]
    drawn = {
        int(token) for i in range(50) for token in draw(masked, {**row, "generated": row["generated"] + i})
    }
    assert drawn == {4, 5}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": (0.0, 0.0, 1000.0, 0.0)},
        {"repetition_penalty": (1.0, 10.0, 1.0, 1.0)},
        {"presence_penalty": (0.0, 0.0, 30.0, 0.0)},
        {"frequency_penalty": (30.0, 0.0, 0.0, 0.0)},
        {"min_tokens": (0, 0, 0, 6)},
        {"bias": True},
        {"forbids": True},
    ],
    ids=repr,
)
def test_the_next_token_is_drawn_from_what_is_allowed(values: dict[str, Any]) -> None:
    """Each reason alone must change the token of the row that has it, and of no other."""
    num_tokens = VOCAB - 20
    row = row_in_the_middle()
    logits = grid_logits(4, 4)
    # The largest logit belongs to no token; the next one is a stop token, in the prompt and in the output.
    logits[:, -1] = 50
    logits[:, 8] = 20
    row["stop_ids"][:, 0] = 8
    row["output_counts"][:, 8] = 1
    mask = np.full((4, -(-VOCAB // 32)), 0xFFFFFFFF, np.uint32)
    for name, value in values.items():
        if name == "bias":
            set_bias(row, 1, {7: 100.0})
        elif name == "forbids":
            mask[1] = mask_of(np.arange(VOCAB)[None] != 8)
        else:
            row[name][...] = np.reshape(value, (-1, *[1] * (row[name].ndim - 1)))
    tokens = np.asarray(following(logits, row, mask, num_tokens=num_tokens))
    expected = np.asarray(draw(allow(logits, row, mask, num_tokens=num_tokens), row))
    assert tokens.tolist() == expected.tolist()
    assert np.count_nonzero(tokens != 8) == bool(values)


# Which tokens are kept.


def reference_kept(
    logits: Array, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[Array, bool]:
    """Return bool [vocab], and whether a limit is within float32 rounding of the compared value."""
    is_close = False
    weights = np.exp((logits.astype(np.float64) - float(logits.max())) / temperature)
    if 0 < top_k < len(weights):
        weights[weights < np.sort(weights)[-top_k]] = 0.0
    if top_p < 1.0:
        ordered = np.sort(weights)[::-1]
        mass = np.cumsum(ordered) / ordered.sum()
        last = int(np.argmax(mass >= top_p))
        is_close |= bool(np.any(np.abs(mass - top_p) < 1e-5))
        weights[weights < ordered[last]] = 0.0
    if min_p > 0.0:
        is_close |= bool(np.any(np.abs(weights - min_p) < 1e-5 * min_p) and min_p != 1.0)
        weights[weights < min_p] = 0.0
    return weights > 0.0, is_close


@examples(150)
@given(
    seed=st.integers(0, 2**32 - 1),
    temperatures=st.lists(st.sampled_from((0.3, 0.7, 1.0, 1.9)), min_size=4, max_size=4),
    top_ks=st.lists(
        st.one_of(st.just(0), st.integers(1, 40), st.sampled_from((299, 300, 301, 2**31 - 1))),
        min_size=4,
        max_size=4,
    ),
    top_ps=st.lists(
        st.one_of(st.just(1.0), st.floats(0.01, 0.999), st.sampled_from((1e-30, 1e-6))),
        min_size=4,
        max_size=4,
    ),
    min_ps=st.lists(st.one_of(st.just(0.0), st.floats(0.001, 0.9), st.just(1.0)), min_size=4, max_size=4),
)
def test_kept_tokens_are_those_of_numpy(
    seed: int, temperatures: list[float], top_ks: list[int], top_ps: list[float], min_ps: list[float]
) -> None:
    """Keep all ties at a limit; apply k, then p to the rest, then min-p."""
    logits = grid_logits(seed, 4)
    row = make_row(4, temperature=temperatures, top_k=top_ks, top_p=top_ps, min_p=min_ps)
    kept = np.asarray(truncate(logits, row)) > 0.0
    for line in range(4):
        parameters = (float(row[name][line]) for name in ("temperature", "top_k", "top_p", "min_p"))
        temperature, top_k, top_p, min_p = parameters
        expected, is_close = reference_kept(logits[line], temperature, int(top_k), top_p, min_p)
        if not is_close:
            assert np.flatnonzero(kept[line]).tolist() == np.flatnonzero(expected).tolist()


@pytest.mark.parametrize(
    ("probabilities", "parameters", "kept"),
    [
        ((0.4, 0.3, 0.2, 0.1), {}, [0, 1, 2, 3]),
        ((0.4, 0.3, 0.2, 0.1), {"top_k": 1}, [0]),
        ((0.3, 0.3, 0.2, 0.2), {"top_k": 1}, [0, 1]),
        ((0.4, 0.2, 0.2, 0.2), {"top_k": 2}, [0, 1, 2, 3]),
        ((0.4, 0.3, 0.2, 0.1), {"top_k": 4}, [0, 1, 2, 3]),
        ((0.4, 0.3, 0.2, 0.1), {"top_k": 5}, [0, 1, 2, 3]),
        ((0.4, 0.3, 0.2, 0.1), {"top_p": 0.39}, [0]),
        ((0.4, 0.3, 0.2, 0.1), {"top_p": 0.41}, [0, 1]),
        ((0.4, 0.2, 0.2, 0.2), {"top_p": 0.41}, [0, 1, 2, 3]),
        ((0.4, 0.3, 0.2, 0.1), {"top_p": 1e-30}, [0]),
        ((0.4, 0.3, 0.2, 0.1), {"min_p": 0.51}, [0, 1]),
        ((0.4, 0.3, 0.2, 0.1), {"min_p": 1.0}, [0]),
        # 0.4 is more than 0.55 of the 0.7 that k leaves, but less than 0.55 of everything.
        ((0.4, 0.3, 0.2, 0.1), {"top_k": 2, "top_p": 0.55}, [0]),
        ((0.4, 0.3, 0.2, 0.1), {"top_p": 0.55}, [0, 1]),
        # min-p compares with the best token, whatever k and p left.
        ((0.4, 0.3, 0.2, 0.1), {"top_k": 3, "top_p": 0.9, "min_p": 0.6}, [0, 1]),
        # Temperature comes first: at 0.5 the squares 16, 9, 4, 1 of 30 count.
        ((0.4, 0.3, 0.2, 0.1), {"temperature": 0.5, "top_p": 0.52}, [0]),
        ((0.4, 0.3, 0.2, 0.1), {"temperature": 0.5, "min_p": 0.6}, [0]),
    ],
    ids=str,
)
def test_kept_tokens_by_hand(
    probabilities: tuple[float, ...], parameters: dict[str, float], kept: list[int]
) -> None:
    logits = np.log(np.array([probabilities], np.float32))
    row = make_row(1, 4, **{"temperature": 1.0, **parameters})
    assert np.flatnonzero(np.asarray(truncate(logits, row))[0]).tolist() == kept


# Greedy.


def test_temperature_zero_takes_the_first_of_the_largest_whatever_else_is_set() -> None:
    logits = grid_logits(1, 8)
    row = make_row(8, top_k=3, top_p=0.5, seed=11)
    assert np.asarray(draw(logits, row)).tolist() == logits.argmax(-1).tolist()
    row["temperature"][::2] = 1.0
    assert np.asarray(draw(logits, row))[1::2].tolist() == logits.argmax(-1)[1::2].tolist()


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 2e-38, 1e-38, 1e-45])
def test_a_temperature_of_almost_zero_takes_the_largest(temperature: float) -> None:
    """The API allows any number from 0 to 2: dividing by a tiny one overflowed and drew token 0."""
    logits = grid_logits(1, 8)
    logits[:, 200] = 11.0
    row = make_row(8, temperature=temperature, top_k=(0, 5) * 4, top_p=(1.0, 1.0, 0.5, 0.5) * 2)
    assert np.asarray(draw(logits, row)).tolist() == [200] * 8


def test_a_repetition_penalty_of_almost_zero_draws_one_of_the_repeated() -> None:
    row = make_row(8, temperature=1.0, repetition_penalty=1e-38, seed=np.arange(16).reshape(8, 2))
    set_prompt(row, np.isin(np.arange(VOCAB), [200, 250]))
    logits = grid_logits(1, 8)
    logits[:, [200, 250]] = 8.0
    tokens = np.asarray(draw(process(logits, row, num_tokens=VOCAB), row))
    assert set(tokens.tolist()) <= {200, 250}


# Draws.


def draws(logits: Array, num_draws: int, **values: Any) -> Array:
    """Return int32 [num_draws] from one distribution; `seed` or `generated` vary the draws."""
    row = make_row(num_draws, **values)
    return np.asarray(draw(np.broadcast_to(logits, (num_draws, VOCAB)), row))


def check_distribution(tokens: Array, logits: Array, parameters: dict[str, float]) -> None:
    full = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **parameters}
    kept, is_close = reference_kept(
        logits, full["temperature"], int(full["top_k"]), full["top_p"], full["min_p"]
    )
    assert not is_close
    exact = np.where(kept, np.exp(logits.astype(np.float64) / full["temperature"]), 0.0)
    expected = exact / exact.sum() * len(tokens)
    counts = np.bincount(tokens, minlength=VOCAB)
    assert counts[~kept].sum() == 0
    # Rare tokens share one bin, as the test's approximation requires.
    rare = expected < 10
    observed_bins = np.append(counts[~rare], counts[rare].sum())
    expected_bins = np.append(expected[~rare], expected[rare].sum())
    filled = expected_bins > 0
    assert filled.sum() > 5
    assert stats.chisquare(observed_bins[filled], expected_bins[filled]).pvalue > FALSE_ALARM_ODDS


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 1.0},
        {"temperature": 2.0},
        {"temperature": 0.7, "top_k": 20},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.03},
        {"temperature": 1.5, "top_k": 60, "top_p": 0.93, "min_p": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("varied", ["low word of the seed", "high word of the seed", "token index"])
def test_draws_follow_the_exact_distribution(parameters: dict[str, float], varied: str) -> None:
    logits = np.random.default_rng(5).normal(0, 2, VOCAB).astype(np.float32)
    num_draws = 8192
    seed = np.full((num_draws, 2), 77, np.uint32)
    generated = np.full(num_draws, 3)
    if varied == "token index":
        generated = np.arange(num_draws)
    else:
        seed[:, 1 if varied == "low word of the seed" else 0] = np.arange(num_draws)
    tokens = draws(logits, num_draws, seed=seed, generated=generated, **parameters)
    check_distribution(tokens, logits, parameters)


def test_a_draw_depends_on_neither_neighbours_nor_row() -> None:
    """Compare weights bit for bit, and 40 draws from each batch token for token."""
    random = np.random.default_rng(9)
    own_logits = random.normal(0, 2, VOCAB).astype(np.float32)
    own = make_row(1, temperature=0.8, top_p=0.95, repetition_penalty=1.1, seed=(5, 6))
    own["output_counts"][...] = random.integers(0, 2, VOCAB)

    def answer(num_rows: int, line: int, generated: int, neighbours: dict[str, Any]) -> tuple[Array, int]:
        logits = random.normal(0, 3, (num_rows, VOCAB)).astype(np.float32)
        row = make_row(num_rows, **neighbours)
        logits[line] = own_logits
        for name, values in own.items():
            row[name][line] = values[0]
        row["generated"][line] = generated
        processed = process(logits, row, num_tokens=VOCAB)
        weights = np.asarray(truncate(processed, row))[line]
        return weights, int(np.asarray(draw(processed, row))[line])

    crowds: list[tuple[int, int, dict[str, Any]]] = [
        (8, 0, {}),
        (8, 3, {"temperature": 1.0, "top_k": 5, "seed": 99}),
        (8, 7, {"temperature": 2.0, "presence_penalty": 1.0, "min_p": 0.2, "generated": 4, "min_tokens": 9}),
        (5, 4, {"temperature": 1.0, "logit_bias_ids": 3, "logit_bias_values": 0.1}),
    ]
    tokens = []
    for generated in range(40):
        weights_alone, token_alone = answer(1, 0, generated, {})
        for num_rows, line, neighbours in crowds:
            weights, token = answer(num_rows, line, generated, neighbours)
            assert np.array_equal(weights.view(np.int32), weights_alone.view(np.int32))
            assert token == token_alone
        tokens.append(token_alone)
    assert len(set(tokens)) > 10


def test_every_part_of_the_seed_and_the_token_index_make_another_draw() -> None:
    flat = np.zeros(VOCAB, np.float32)
    seeds = [(0, 0), (0, 1), (1, 0), (1, 1), (2**31, 0), (0, 2**31), (2**32 - 1, 2**32 - 1)]
    sequences = [
        draws(flat, 64, temperature=1.0, seed=np.array(seed, np.uint32), generated=np.arange(64)).tolist()
        for seed in seeds
    ]
    for place, sequence in enumerate(sequences):
        assert len(set(sequence)) > 32
        for other in sequences[:place]:
            # Two independent draws agree with odds of 1/300: 8 of 64 by chance is less than 1e-10.
            assert sum(a == b for a, b in zip(sequence, other, strict=True)) < 8


@pytest.mark.parametrize("vocab", [1, 2, 127, 128, 129, 300])
def test_a_single_positive_weight_is_always_drawn(vocab: int) -> None:
    places = sorted({0, vocab // 2, vocab - 1, *(p for p in (126, 127, 128, 129, 255, 256) if p < vocab)})
    for uniform in (0.0, 0.5, 1.0 - 2.0**-23):
        weights = np.zeros((10, vocab), np.float32)
        expected = (places * 10)[:10]
        weights[np.arange(10), expected] = 1.0
        assert np.asarray(inverse_cdf(weights, np.full(10, uniform, np.float32))).tolist() == expected


@pytest.mark.parametrize(
    ("positive", "uniform", "expected"),
    [
        ((127, 128), 0.0, 127),
        ((127, 128), 0.49, 127),
        ((127, 128), 0.5, 128),
        ((127, 128), 0.9999999, 128),
        ((126, 129), 0.0, 126),
        ((126, 129), 0.51, 129),
        ((0, 299), 0.0, 0),
        ((0, 299), 0.75, 299),
        ((130, 140, 150, 160), 0.0, 130),
        ((130, 140, 150, 160), 0.25, 140),
        ((130, 140, 150, 160), 0.74, 150),
        ((10, 290), 0.5, 290),
    ],
    ids=str,
)
def test_a_weight_of_zero_is_never_drawn(positive: tuple[int, ...], uniform: float, expected: int) -> None:
    weights = np.zeros((1, VOCAB), np.float32)
    weights[0, list(positive)] = 0.25
    assert np.asarray(inverse_cdf(weights, np.array([uniform], np.float32))).tolist() == [expected]


@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from((0.01, 0.1, 0.5, 1.0)))
def test_the_inverse_of_the_running_sum_is_that_of_numpy(seed: int, share: float) -> None:
    random = np.random.default_rng(seed)
    weights = (random.random((8, VOCAB)) ** 8).astype(np.float32) * (random.random((8, VOCAB)) < share)
    weights[:, random.integers(VOCAB)] = 1.0
    uniform = random.random(8).astype(np.float32)
    for token, line, u in zip(np.asarray(inverse_cdf(weights, uniform)), weights, uniform, strict=True):
        running = np.cumsum(line.astype(np.float64))
        target = float(u) * running[-1]
        assert line[token] > 0
        if np.abs(running - target).min() > 1e-5 * running[-1]:
            assert token == int(np.argmax(running > target))


def test_a_long_flat_tail_is_drawn_as_often_as_it_should() -> None:
    """With 131072 tokens and half of the mass on the first, small weights must not vanish in the sum."""
    weights = np.full((64, 2**17), 2.0**-17, np.float32)
    weights[:, 0] = 1.0
    uniform = ((np.arange(64) + 0.5) / 64).astype(np.float32)
    tokens = np.asarray(inverse_cdf(weights, uniform))
    running = np.cumsum(weights[0].astype(np.float64))
    running /= running[-1]
    assert tokens[:32].tolist() == [0] * 32
    assert np.abs(running[tokens[32:]] - uniform[32:]).max() < 2e-5


# Logprobs.


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = np.random.default_rng(2).normal(0, 4, (8, VOCAB)).astype(np.float32)
    order = np.argsort(-logits, axis=-1)
    tokens = order[np.arange(8), [0, 1, 5, 19, 20, 100, 299, 0]].astype(np.int32)
    wanted = np.array([False] * 7 + [True])
    own, ids, values = (np.asarray(part) for part in logprobs_of(logits, tokens, wanted))
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    np.testing.assert_allclose(own, exact[np.arange(8), tokens], rtol=1e-5, atol=1e-5)
    assert ids.tolist() == order[:, :20].tolist()
    np.testing.assert_allclose(values, np.take_along_axis(exact, ids, -1), rtol=1e-5, atol=1e-5)
    for line, rank in enumerate([0, 1, 5, 19]):
        assert own[line].tobytes() == values[line, rank].tobytes()


def test_the_token_has_the_logprob_of_its_entry_bit_for_bit() -> None:
    logits = np.random.default_rng(4).normal(0, 4, (8, VOCAB)).astype(np.float32)
    order = np.argsort(-logits, axis=-1)
    for rank in range(20):
        tokens = order[:, rank].astype(np.int32)
        own, _, values = logprobs_of(logits, tokens, np.full(8, True))
        assert np.asarray(own).tobytes() == np.asarray(values)[:, rank].tobytes()


def test_without_a_wish_there_are_no_logprobs() -> None:
    logits = grid_logits(1, 8)
    results = logprobs_of(logits, np.zeros(8, np.int32), np.full(8, False))
    assert [result.shape for result in results] == [(8,), (8, 20), (8, 20)]
    for result in results:
        assert not np.asarray(result).any()


def test_a_vocabulary_smaller_than_the_list_is_filled_with_impossible_tokens() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    _, ids, values = logprobs_of(logits, np.array([1], np.int32), np.array([True]))
    assert np.asarray(ids)[0, :3].tolist() == [0, 1, 2]
    np.testing.assert_allclose(np.asarray(values)[0, :3], np.log([0.5, 0.25, 0.25]), rtol=1e-6)
    assert np.asarray(values)[0, 3:].tolist() == [-np.inf] * 17
