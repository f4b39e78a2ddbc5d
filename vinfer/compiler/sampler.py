"""Samples tokens from logits on the device; every parameter is a traced array.

Order: repetition, presence and frequency penalties; logit bias; min_tokens; grammar; temperature; top-k;
top-p; min-p. The vocabulary is never sorted: bisection over the bits of float32 finds the exact
threshold. All ties at a threshold are kept. Pure functions of jnp arrays; no EasyDeL, no slots, no cache.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from vinfer.bundle.manifest import MASK_WORD_BITS, MAX_TOP_LOGPROBS

NEG_INF = float("-inf")
_BLOCK = 128
_BITS_OF_ONE = 0x3F800000

Row = dict[str, jax.Array]
"""State of the rows of a dispatch, by the names of `state.py`; the first axis of every array is [rows]."""


def next_tokens(logits: jax.Array, row: Row, grammar_mask: jax.Array, *, num_tokens: int) -> jax.Array:
    """Return the next token of each row, int32 [rows]: `sample` of `allowed_logits`.

    While every row takes the largest logit of the model, nothing else of the vocabulary's size is written. A
    condition with such an array as its result costs a copy: with 32 rows and 262,144 tokens, a step on a
    TPU would move 200 MB more.

    Args:
        logits, row, grammar_mask, num_tokens: see `allowed_logits`.
    """
    is_plain = ~(_changes_logits(row, grammar_mask) | jnp.any(row["temperature"] > 0.0))
    return lax.cond(
        is_plain,
        lambda x: _first_largest(_forbid_unknown(x, num_tokens)),
        lambda x: sample(allowed_logits(x, row, grammar_mask, num_tokens=num_tokens), row),
        logits,
    )


def allowed_logits(logits: jax.Array, row: Row, grammar_mask: jax.Array, *, num_tokens: int) -> jax.Array:
    """Return what tokens are drawn from: `process_logits`, then `keep_allowed`, if any row needs them.

    A condition that does not hold still copies the vocabulary. One around all of them, for 32 rows and
    128,256 tokens, saves 130 MB per step on a GPU.

    Args:
        logits: float32 [rows, vocab], from the model.
        grammar_mask: see `keep_allowed`.
        num_tokens: see `process_logits`.

    Returns:
        float32 [rows, vocab].
    """
    return lax.cond(
        _changes_logits(row, grammar_mask),
        lambda x: keep_allowed(process_logits(x, row, num_tokens=num_tokens), grammar_mask),
        lambda x: _forbid_unknown(x, num_tokens),
        logits,
    )


def process_logits(logits: jax.Array, row: Row, *, num_tokens: int) -> jax.Array:
    """Apply penalties, bias and min_tokens.

    Args:
        logits: float32 [rows, vocab], from the model.
        num_tokens: ids from this value on are not in the tokenizer and are never sampled.

    Returns:
        float32 [rows, vocab].
    """
    logits = _when(jnp.any(_is_penalised(row)), lambda x: _penalise(x, row), logits)
    logits = _when(jnp.any(_has_bias(row)), lambda x: _add_bias(x, row), logits)
    too_early = _is_too_early(row)
    logits = _when(jnp.any(too_early), lambda x: _forbid_stop(x, row, too_early), logits)
    return _forbid_unknown(logits, num_tokens)


def keep_allowed(logits: jax.Array, grammar_mask: jax.Array) -> jax.Array:
    """Mask the tokens that a grammar does not allow next.

    Args:
        logits: float32 [rows, vocab], processed.
        grammar_mask: uint32 [rows, ceil(vocab / 32)]; bit i % 32 of word i // 32 is set if token i is
            allowed. A row without a grammar has all bits set; if every row does, nothing is computed.

    Returns:
        float32 [rows, vocab].
    """

    def keep(logits: jax.Array) -> jax.Array:
        return jnp.where(_unpacked(grammar_mask, logits.shape[-1]), logits, NEG_INF)

    return _when(_has_grammar(grammar_mask), keep, logits)


def sample(logits: jax.Array, row: Row) -> jax.Array:
    """Draw one token per row; rows with temperature 0 take the largest logit (the first of equals).

    Args:
        logits: float32 [rows, vocab], processed.

    Returns:
        int32 [rows].
    """
    greedy = _first_largest(logits)
    is_sampled = row["temperature"] > 0.0

    def draw(logits: jax.Array) -> jax.Array:
        weights = _truncate(logits, row)
        return jnp.where(is_sampled, _inverse_cdf(weights, _uniform(row)), greedy)

    return lax.cond(jnp.any(is_sampled), draw, lambda _: greedy, logits)


def top_logprobs(logits: jax.Array, tokens: jax.Array, wanted: jax.Array) -> tuple[jax.Array, ...]:
    """Return logprobs of the raw model logits, if any row of the batch requests them.

    The sampled token's value is read from the same array as the top values, so equal tokens have equal
    floats.

    Args:
        logits: float32 [rows, vocab], raw.
        tokens: int32 [rows].
        wanted: bool [rows]; if no row wants any, all results are zero.

    Returns:
        float32 [rows] of the tokens, int32 [rows, 20] ids, float32 [rows, 20] their logprobs.
    """
    rows = logits.shape[0]
    k = min(MAX_TOP_LOGPROBS, logits.shape[-1])

    def compute(logits: jax.Array) -> tuple[jax.Array, ...]:
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
        values, ids = lax.top_k(logprobs, k)
        pad = ((0, 0), (0, MAX_TOP_LOGPROBS - k))
        return own, jnp.pad(ids, pad), jnp.pad(values, pad, constant_values=NEG_INF)

    def skip(_: jax.Array) -> tuple[jax.Array, ...]:
        wide = (rows, MAX_TOP_LOGPROBS)
        return jnp.zeros(rows), jnp.zeros(wide, jnp.int32), jnp.zeros(wide)

    return lax.cond(jnp.any(wanted), compute, skip, logits)


def _when(condition: jax.Array, change: Callable[[jax.Array], jax.Array], logits: jax.Array) -> jax.Array:
    return lax.cond(condition, change, lambda x: x, logits)


def _changes_logits(row: Row, grammar_mask: jax.Array) -> jax.Array:
    """Return whether any row draws from other logits than the model's."""
    return jnp.any(_is_penalised(row) | _has_bias(row) | _is_too_early(row)) | _has_grammar(grammar_mask)


def _is_penalised(row: Row) -> jax.Array:
    return (
        (row["repetition_penalty"] != 1.0)
        | (row["presence_penalty"] != 0.0)
        | (row["frequency_penalty"] != 0.0)
    )


def _has_bias(row: Row) -> jax.Array:
    return row["logit_bias_ids"][:, 0] >= 0


def _is_too_early(row: Row) -> jax.Array:
    return row["generated"] < row["min_tokens"]


def _has_grammar(grammar_mask: jax.Array) -> jax.Array:
    return jnp.any(grammar_mask != jnp.uint32(0xFFFFFFFF))


def _forbid_unknown(logits: jax.Array, num_tokens: int) -> jax.Array:
    vocab = logits.shape[-1]
    return jnp.where(jnp.arange(vocab) < num_tokens, logits, NEG_INF) if num_tokens < vocab else logits


def _unpacked(words: jax.Array, vocab: int) -> jax.Array:
    """Return bool [rows, vocab] for uint32 [rows, ceil(vocab / 32)]: one bit per token, the lowest first.

    Four words at a time, because an array whose last axis is shorter than 128 is padded to that on a TPU.
    """
    num_words = words.shape[1]
    lane = jnp.arange(_BLOCK, dtype=jnp.uint32)
    words_of_block = _BLOCK // MASK_WORD_BITS
    padded = jnp.pad(words, ((0, 0), (0, -num_words % words_of_block)))
    word = padded[:, ::words_of_block, None]
    for place in range(1, words_of_block):
        word = jnp.where(lane // MASK_WORD_BITS == place, padded[:, place::words_of_block, None], word)
    is_set = ((word >> (lane % MASK_WORD_BITS)) & 1).astype(jnp.bool_)
    return is_set.reshape(words.shape[0], -1)[:, :vocab]


def _penalise(logits: jax.Array, row: Row) -> jax.Array:
    """Apply the penalties: repetition counts prompt and output; presence and frequency count output only.

    Source: CTRL (arXiv:1909.05858) for repetition; OpenAI's API reference for the other two.
    """
    counts = row["output_counts"].astype(jnp.float32)
    in_output = counts > 0
    repetition = row["repetition_penalty"][:, None]
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    in_prompt = _unpacked(row["prompt_mask"], logits.shape[-1])
    logits = jnp.where(in_prompt | in_output, repeated, logits)
    logits = logits - counts * row["frequency_penalty"][:, None]
    return logits - in_output * row["presence_penalty"][:, None]


def _add_bias(logits: jax.Array, row: Row) -> jax.Array:
    ids = row["logit_bias_ids"]
    columns = jnp.where(ids < 0, logits.shape[-1], ids)
    lines = jnp.arange(logits.shape[0])[:, None]
    return logits.at[lines, columns].add(row["logit_bias_values"], mode="drop")


def _forbid_stop(logits: jax.Array, row: Row, too_early: jax.Array) -> jax.Array:
    ids = row["stop_ids"]
    columns = jnp.where((ids < 0) | ~too_early[:, None], logits.shape[-1], ids)
    lines = jnp.arange(logits.shape[0])[:, None]
    return logits.at[lines, columns].set(NEG_INF, mode="drop")


def _first_largest(logits: jax.Array) -> jax.Array:
    """Return the argmax, int32 [rows]. XLA on a CPU runs two passes sixteen times faster than one."""
    vocab = logits.shape[-1]
    is_largest = logits == jnp.max(logits, axis=-1, keepdims=True)
    return jnp.min(jnp.where(is_largest, jnp.arange(vocab, dtype=jnp.int32), vocab - 1), axis=-1)


def _truncate(logits: jax.Array, row: Row) -> jax.Array:
    """Return unnormalized probabilities after temperature, top-k, top-p and min-p; 0 means excluded."""
    temperature = jnp.where(row["temperature"] > 0.0, row["temperature"], 1.0)
    largest = jnp.max(logits, axis=-1, keepdims=True)
    # Subtract before dividing, and set the largest to 0: a tiny temperature or an infinite logit
    # (from a tiny repetition penalty) would otherwise produce inf - inf.
    scaled = jnp.where(logits == largest, 0.0, (logits - largest) / temperature[:, None])
    weights = jnp.exp(scaled)
    top_k, top_p, min_p = row["top_k"], row["top_p"], row["min_p"]
    weights = _keep_top_k(weights, top_k)
    weights = _keep_top_p(weights, top_p)
    # The largest weight is exactly 1, so min_p needs no maximum.
    return jnp.where(weights >= min_p[:, None], weights, 0.0)


def _keep_top_k(weights: jax.Array, top_k: jax.Array) -> jax.Array:
    has_limit = top_k > 0

    def threshold(weights: jax.Array) -> jax.Array:
        def enough(threshold: jax.Array) -> jax.Array:
            return jnp.sum(weights >= threshold[:, None], axis=-1) >= top_k

        return _largest_float(enough, weights.shape[0])

    return _keep_above(threshold, has_limit, weights)


def _keep_top_p(weights: jax.Array, top_p: jax.Array) -> jax.Array:
    """Keep the smallest set of most likely tokens whose mass reaches top_p, and all ties with its last."""
    has_limit = top_p < 1.0

    def threshold(weights: jax.Array) -> jax.Array:
        needed = top_p * jnp.sum(weights, axis=-1)

        def enough(threshold: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(weights >= threshold[:, None], weights, 0.0), axis=-1) >= needed

        return _largest_float(enough, weights.shape[0])

    return _keep_above(threshold, has_limit, weights)


def _keep_above(
    threshold: Callable[[jax.Array], jax.Array], has_limit: jax.Array, weights: jax.Array
) -> jax.Array:
    """Keep the weights from a threshold on, in rows with a limit; compute none if no row has one.

    The condition returns one number per row. With the weights as its result, the TPU compiler took 20 s
    longer for each program.
    """

    def compute(weights: jax.Array) -> jax.Array:
        return jnp.where(has_limit, threshold(weights), 0.0)

    lowest = lax.cond(jnp.any(has_limit), compute, lambda w: jnp.zeros(w.shape[0], w.dtype), weights)
    # Otherwise XLA on a TPU makes a threshold for each token in the condition, an array like the weights.
    lowest = lax.optimization_barrier(lowest)
    return jnp.where(weights >= lowest[:, None], weights, 0.0)


def _largest_float(enough: Callable[[jax.Array], jax.Array], rows: int) -> jax.Array:
    """Return the largest float32 in [0, 1], per row, for which `enough` (decreasing) still holds.

    The bits of non-negative floats sort like integers, so 31 halvings of the integer range are exact.
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low + 1) // 2
        holds = enough(lax.bitcast_convert_type(middle, jnp.float32))
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

    start = jnp.zeros(rows, jnp.int32), jnp.full(rows, _BITS_OF_ONE, jnp.int32)
    low, _ = lax.fori_loop(0, 31, halve, start)
    return lax.bitcast_convert_type(low, jnp.float32)


def _uniform(row: Row) -> jax.Array:
    """Return float32 [rows] in [0, 1), which depends only on seed and token index, never on the slot.

    Requests threefry2x32 explicitly, because `rbg` draws differently under vmap.
    """

    def draw(seed: jax.Array, generated: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, generated), dtype=jnp.float32)

    return jax.vmap(draw)(row["seed"], row["generated"])


def _inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """Return the first token at which the running sum of weights passes uniform * total.

    Sums run over blocks first and then inside one block, so no pass is longer than the vocabulary.

    Args:
        weights: float32 [rows, vocab], not negative, at least one positive.
        uniform: float32 [rows].

    Returns:
        int32 [rows]; never a token of weight 0.
    """
    rows, vocab = weights.shape
    num_blocks = -(-vocab // _BLOCK)
    blocks = jnp.pad(weights, ((0, 0), (0, num_blocks * _BLOCK - vocab))).reshape(rows, num_blocks, _BLOCK)
    block_sums = jnp.sum(blocks, axis=-1)
    ends = jnp.cumsum(block_sums, axis=-1)
    target = uniform * ends[:, -1]
    block = _first_past(ends, target, block_sums)
    before = jnp.take_along_axis(ends - block_sums, block[:, None], axis=-1)[:, 0]
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    place = _first_past(jnp.cumsum(inside, axis=-1), target - before, inside)
    return (block * _BLOCK + place).astype(jnp.int32)


def _first_past(running: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the first positive entry whose running sum passes `target`, or the last positive entry.

    Rounding can leave the whole running sum below the target; then the last positive entry is correct.
    """
    num = weights.shape[-1]
    index = jnp.arange(num)
    first = jnp.min(jnp.where((running > target[:, None]) & (weights > 0), index, num), axis=-1)
    last = jnp.max(jnp.where(weights > 0, index, 0), axis=-1)
    return jnp.where(first < num, first, last)
