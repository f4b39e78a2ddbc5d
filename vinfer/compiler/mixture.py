"""A mixture of experts in plain XLA: each token gets its own experts, whatever else is in the batch.

Shapes are static, no token is dropped, and only chosen experts are read, except for leftover blocks (see
`block_size`). Knows neither EasyDeL nor any model family.

Source: the padded blocks are those of MegaBlocks (arXiv:2211.15841), which vLLM's fused kernel also uses.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

MAX_TOKENS_BY_ALL = 128
"""Most tokens that all experts compute. For more, arithmetic takes longer than reading the weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """Gated feed-forward blocks of one shape.

    Attributes:
        gate, up: [experts, hidden, inner].
        down: [experts, inner, hidden].
        gate_bias, up_bias: [experts, inner], or None.
        down_bias: [experts, hidden], or None.
        activation: (gate, up), each [rows, inner] -> [rows, inner].
    """

    gate: jax.Array
    up: jax.Array
    down: jax.Array
    gate_bias: jax.Array | None = None
    up_bias: jax.Array | None = None
    down_bias: jax.Array | None = None
    activation: Callable[[jax.Array, jax.Array], jax.Array]

    def __call__(self, rows: jax.Array, expert: jax.Array) -> jax.Array:
        """Compute one expert, int32 [], of rows [rows, hidden]."""
        gate = _linear(rows, self.gate, self.gate_bias, expert)
        up = _linear(rows, self.up, self.up_bias, expert)
        return _linear(self.activation(gate, up), self.down, self.down_bias, expert)


def _linear(rows: jax.Array, kernels: jax.Array, biases: jax.Array | None, expert: jax.Array) -> jax.Array:
    kernel = jax.lax.dynamic_index_in_dim(kernels, expert, keepdims=False)
    if rows.shape[0] == 1:
        # XLA on the CPU copies the kernel out of the stack before a dot; in a fusion, it reads it in place.
        products = rows[0, :, None].astype(jnp.float32) * kernel.astype(jnp.float32)
        result = products.sum(axis=0, keepdims=True).astype(rows.dtype)
    else:
        result = rows @ kernel
    return result if biases is None else result + biases[expert]


def route(logits: jax.Array, num_chosen: int, *, is_normalised: bool) -> tuple[jax.Array, jax.Array]:
    """Choose experts by softmax over all of them, in float32.

    Args:
        logits: [tokens, experts].
        is_normalised: divide the chosen probabilities by their sum. Same as softmax over the
            chosen logits.

    Returns:
        Weights, float32 [tokens, num_chosen], and experts, int32 [tokens, num_chosen], best first; ties
        go to the lower index.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    weights, experts = jax.lax.top_k(probabilities, num_chosen)
    if is_normalised:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights, experts.astype(jnp.int32)


def block_size(num_tokens: int, num_chosen: int, num_experts: int) -> int:
    """Return how many rows of one expert are computed together.

    Returns 1 if one block per choice is no more than one block per expert. Otherwise about the average
    rows per expert, a power of two: smaller blocks read weights more often, larger ones add padding.
    """
    choices = num_tokens * num_chosen
    if choices <= num_experts:
        return 1
    average = -(-choices // num_experts)
    return min(num_tokens, max(16, 1 << (average - 1).bit_length()))


def mix(hidden: jax.Array, weights: jax.Array, chosen: jax.Array, experts: Experts) -> jax.Array:
    """Return the weighted sum of each token's experts.

    On accelerators, few tokens that may need all experts are computed by all: see `mix_by_all`.

    Args:
        hidden: [tokens, hidden].
        weights: float32 [tokens, chosen].
        chosen: int32 [tokens, chosen], experts by index.

    Returns:
        [tokens, hidden], in the dtype of `hidden`, summed in float32.
    """
    num_tokens, num_chosen = chosen.shape
    in_blocks = functools.partial(mix_in_blocks, experts=experts)
    if num_tokens > MAX_TOKENS_BY_ALL or num_tokens * num_chosen <= experts.gate.shape[0]:
        return in_blocks(hidden, weights, chosen)
    by_all = functools.partial(mix_by_all, experts=experts)
    mixed: jax.Array = jax.lax.platform_dependent(hidden, weights, chosen, cpu=in_blocks, default=by_all)
    return mixed


def mix_by_all(hidden: jax.Array, weights: jax.Array, chosen: jax.Array, experts: Experts) -> jax.Array:
    """Do what `mix` does, with every expert computing every token.

    An accelerator waits for weights, not for the additional arithmetic, and these are read once. XLA on a GPU
    copies the expert of each block before it multiplies: three times the traffic.
    """
    num_experts = experts.gate.shape[0]

    def linear(rows: jax.Array, kernels: jax.Array, biases: jax.Array | None) -> jax.Array:
        """Return [experts, tokens, outputs] for rows [experts or 1, tokens, inputs]."""
        rows = jnp.broadcast_to(rows, (num_experts, *rows.shape[1:]))
        result = jnp.einsum("eti,eio->eto", rows, kernels)
        return result if biases is None else result + biases[:, None]

    gate = linear(hidden[None], experts.gate, experts.gate_bias)
    up = linear(hidden[None], experts.up, experts.up_bias)
    outputs = linear(experts.activation(gate, up), experts.down, experts.down_bias)
    is_chosen = chosen[None] == jnp.arange(num_experts, dtype=chosen.dtype)[:, None, None]
    share = jnp.where(is_chosen, weights[None], 0.0).sum(axis=-1)[..., None]
    # What others would have computed may be infinite, and must not count.
    counted = jnp.where(is_chosen.any(axis=-1)[..., None], outputs.astype(jnp.float32), 0.0)
    return (counted * share).sum(axis=0).astype(hidden.dtype)


def mix_in_blocks(hidden: jax.Array, weights: jax.Array, chosen: jax.Array, experts: Experts) -> jax.Array:
    """Do what `mix` does, reading only the experts that are chosen.

    Choices are sorted by expert and cut into blocks of one expert each. There are as many blocks as the worst
    case needs; leftover blocks repeat the last expert, and their results are unused.
    """
    num_tokens, num_chosen = chosen.shape
    num_experts = experts.gate.shape[0]
    size = block_size(num_tokens, num_chosen, num_experts)
    choices = chosen.reshape(-1)
    by_expert = jnp.argsort(choices, stable=True).astype(jnp.int32)
    rank = jnp.argsort(by_expert).astype(jnp.int32)

    counts = jnp.bincount(choices, length=num_experts).astype(jnp.int32)
    first_row = jnp.cumsum(counts) - counts
    num_blocks = -(-counts // size)
    block_ends = jnp.cumsum(num_blocks)
    first_block = block_ends - num_blocks

    block = jnp.arange(max_blocks(num_tokens, num_chosen, num_experts), dtype=jnp.int32)
    expert = jnp.searchsorted(block_ends, block, side="right", method="compare_all").astype(jnp.int32)
    expert = jnp.minimum(expert, choices.max())
    rows = first_row[expert] + (block - first_block[expert]) * size
    # A block may reach into the rows of the next expert; those results are never read.
    rows = jnp.minimum(rows[:, None] + jnp.arange(size, dtype=jnp.int32), choices.size - 1)
    tokens = by_expert[rows] // num_chosen

    def compute(_: None, block: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        expert, tokens = block
        return None, experts(hidden[tokens], expert)

    _, outputs = jax.lax.scan(compute, None, (expert, tokens))

    row_in_expert = rank - first_row[choices]
    own = outputs[first_block[choices] + row_in_expert // size, row_in_expert % size]
    own = own.reshape(num_tokens, num_chosen, -1).astype(jnp.float32)
    return (own * weights[..., None]).sum(axis=1).astype(hidden.dtype)


def max_blocks(num_tokens: int, num_chosen: int, num_experts: int) -> int:
    """Return the number of blocks for the worst distribution over experts."""
    choices = num_tokens * num_chosen
    used = min(num_experts, choices)
    return used + (choices - used) // block_size(num_tokens, num_chosen, num_experts)
