"""Mixtures of experts against the definition: one token and one expert at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from vinfer.compiler.mixture import Experts, block_size, max_blocks, mix, mix_by_all, route

HIDDEN, INNER = 24, 40
Array = npt.NDArray[np.float32]


def gated(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jnp.tanh(gate) * up


def random_experts(num_experts: int, has_bias: bool = False) -> dict[str, Array]:
    draw = np.random.default_rng(num_experts)
    shapes = {
        "gate": (num_experts, HIDDEN, INNER),
        "up": (num_experts, HIDDEN, INNER),
        "down": (num_experts, INNER, HIDDEN),
    }
    if has_bias:
        shapes |= {f"{name}_bias": (num_experts, shape[2]) for name, shape in list(shapes.items())}  # type: ignore[misc]
    return {name: draw.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in shapes.items()}


def by_definition(
    hidden: Array, weights: Array, chosen: npt.NDArray[np.int32], arrays: dict[str, Array]
) -> Array:
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    result = np.zeros(hidden.shape)
    for token, row in enumerate(hidden.astype(np.float64)):
        for weight, expert in zip(weights[token], chosen[token], strict=True):
            gate, up = (
                row @ wide[name][expert] + (wide[f"{name}_bias"][expert] if f"{name}_bias" in wide else 0)
                for name in ("gate", "up")
            )
            down = (np.tanh(gate) * up) @ wide["down"][expert]
            result[token] += weight * (down + (wide["down_bias"][expert] if "down_bias" in wide else 0))
    return result.astype(np.float32)


def jitted(compute: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    @jax.jit
    def mixed(
        hidden: Array, weights: Array, chosen: npt.NDArray[np.int32], arrays: dict[str, Array]
    ) -> jax.Array:
        experts = Experts(**{name: jnp.asarray(array) for name, array in arrays.items()}, activation=gated)
        return compute(jnp.asarray(hidden), jnp.asarray(weights), jnp.asarray(chosen), experts)

    return mixed


mixed, mixed_by_all = jitted(mix), jitted(mix_by_all)


def random_choices(
    num_tokens: int, num_chosen: int, num_experts: int
) -> tuple[Array, Array, npt.NDArray[np.int32]]:
    draw = np.random.default_rng(num_tokens)
    hidden = draw.normal(size=(num_tokens, HIDDEN)).astype(np.float32)
    weights = draw.random((num_tokens, num_chosen)).astype(np.float32)
    chosen = draw.permuted(np.tile(np.arange(num_experts), (num_tokens, 1)), axis=1)[:, :num_chosen]
    return hidden, weights, chosen.astype(np.int32)


# One row per block, blocks with padding, more blocks than experts.
@pytest.mark.parametrize("num_tokens", [1, 3, 90])
@pytest.mark.parametrize(
    ("num_chosen", "num_experts", "has_bias"), [(1, 2, False), (2, 5, True), (3, 16, False)]
)
def test_every_token_meets_its_own_experts(
    num_tokens: int, num_chosen: int, num_experts: int, has_bias: bool
) -> None:
    arrays = random_experts(num_experts, has_bias)
    hidden, weights, chosen = random_choices(num_tokens, num_chosen, num_experts)
    expected = by_definition(hidden, weights, chosen, arrays)
    for computed in (mixed, mixed_by_all):
        np.testing.assert_allclose(
            computed(hidden, weights, chosen, arrays), expected, atol=1e-5 * np.abs(expected).max()
        )


def test_an_expert_that_was_not_chosen_counts_nothing() -> None:
    """What it makes of a token that others chose may be anything."""
    arrays = random_experts(4)
    hidden, weights, _ = random_choices(6, 2, 4)
    chosen = np.tile(np.array([2, 0], np.int32), (6, 1))
    expected = by_definition(hidden, weights, chosen, arrays)
    for name in arrays:
        arrays[name][3] = np.inf
    np.testing.assert_allclose(mixed_by_all(hidden, weights, chosen, arrays), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("favourite", [0, 2, 4])
def test_all_tokens_may_choose_one_expert(favourite: int) -> None:
    arrays = random_experts(5)
    hidden, weights, _ = random_choices(70, 1, 5)
    chosen = np.full((70, 1), favourite, np.int32)
    expected = by_definition(hidden, weights, chosen, arrays)
    np.testing.assert_allclose(
        mixed(hidden, weights, chosen, arrays), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("num_tokens", [2, 40])
def test_a_token_does_not_depend_on_the_others(num_tokens: int) -> None:
    """Bit for bit: the row of token 0 is the same whatever the other tokens are and choose."""
    arrays = random_experts(5)
    hidden, weights, chosen = random_choices(num_tokens, 2, 5)
    alone = mixed(hidden, weights, chosen, arrays)[0]
    others = hidden[:1].repeat(num_tokens, axis=0) * np.linspace(1, 9, num_tokens, dtype=np.float32)[:, None]
    for expert in range(4):
        crowd = np.array([chosen[0], *[[expert, expert + 1]] * (num_tokens - 1)], np.int32)
        np.testing.assert_array_equal(mixed(others, weights, crowd, arrays)[0], alone)


@pytest.mark.parametrize("num_tokens", [1, 4, 16, 100, 1000])
@pytest.mark.parametrize(("num_chosen", "num_experts"), [(1, 8), (2, 8), (8, 128)])
def test_no_distribution_needs_more_blocks(num_tokens: int, num_chosen: int, num_experts: int) -> None:
    size = block_size(num_tokens, num_chosen, num_experts)
    most = max_blocks(num_tokens, num_chosen, num_experts)
    draw = np.random.default_rng(0)
    for _ in range(100):
        popularity = draw.dirichlet(np.full(num_experts, draw.choice([0.01, 0.1, 1.0, 100.0])))
        counts = draw.multinomial(num_tokens * num_chosen, popularity)
        assert np.ceil(counts / size).sum() <= most


def test_routes_in_float32_and_breaks_ties_by_index() -> None:
    logits = jnp.array([[1.0, 3.0, 3.0, 0.0], [2.0, -1.0, 0.5, 2.5]], jnp.bfloat16)
    weights, chosen = route(logits, 2, is_normalised=False)
    assert weights.dtype == jnp.float32
    assert chosen.tolist() == [[1, 2], [3, 0]]
    exponentials = np.exp(np.asarray(logits, np.float64))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(weights, np.take_along_axis(probabilities, np.asarray(chosen), 1), rtol=1e-6)
    normalised, again = route(logits, 2, is_normalised=True)
    assert again.tolist() == chosen.tolist()
    np.testing.assert_allclose(normalised.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(normalised / normalised[:, :1], weights / weights[:, :1], rtol=1e-6)


def test_padding_that_is_no_number_harms_nobody() -> None:
    arrays = random_experts(5)
    hidden, weights, chosen = random_choices(40, 2, 5)
    right = mixed(hidden, weights, chosen, arrays)
    hidden[20:] = np.nan
    np.testing.assert_array_equal(mixed(hidden, weights, chosen, arrays)[:20], right[:20])
