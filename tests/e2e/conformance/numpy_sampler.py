"""The sampler's contract implemented again in float64 NumPy: from a model's logits to the one right token.

Written from the documentation, not from the programs. The order is penalties, logit bias, min_tokens,
grammar, temperature, top-k, top-p, min-p. The draw is one threefry uniform of (seed, index of the token)
through the inverse CDF over token ids. If a limit or a draw is so close to a boundary that rounding could
decide, it raises: the case needs another seed. Knows neither JAX nor HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# As fractions of the total mass, and in logits: a hundred times the float32 error of a tiny model.
NEAR = 2e-5
NEAR_LOGITS = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is sampled, as in a request; the defaults change nothing."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    min_tokens: int = 0
    seed: int = 0


def next_token(
    logits: Array,
    sampling: Sampling,
    *,
    prompt: Sequence[int],
    output: Sequence[int],
    stop_ids: Collection[int],
    allowed: Collection[int],
) -> int:
    """Return the token that follows `output`.

    Args:
        logits: float64 [vocab], raw.
        allowed: the token ids that the tokenizer and the grammar allow.
    """
    logits = processed(logits, sampling, prompt=prompt, output=output, stop_ids=stop_ids)
    forbidden = np.setdiff1d(np.arange(len(logits)), list(allowed))
    logits[forbidden] = -np.inf
    if sampling.temperature == 0:
        best, second = np.sort(logits)[::-1][:2]
        assert best - second > NEAR_LOGITS, "two tokens are nearly equal: choose another prompt"
        return int(logits.argmax())
    weights = kept_weights(logits, sampling)
    running = np.cumsum(weights)
    target = uniform(sampling.seed, len(output)) * running[-1]
    assert np.abs(running - target).min() > NEAR * running[-1], "a draw near a boundary: choose another seed"
    return int(np.argmax(running > target))


def processed(
    logits: Array,
    sampling: Sampling,
    *,
    prompt: Sequence[int],
    output: Sequence[int],
    stop_ids: Collection[int],
) -> Array:
    """Apply penalties, bias and min_tokens to float64 [vocab]."""
    logits = logits.copy()
    for token in {*prompt, *output}:
        penalty = sampling.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    for token in set(output):
        logits[token] -= sampling.frequency_penalty * output.count(token) + sampling.presence_penalty
    for token, bias in sampling.logit_bias.items():
        logits[token] += bias
    if len(output) < sampling.min_tokens:
        logits[list(stop_ids)] = -np.inf
    return logits


def kept_weights(logits: Array, sampling: Sampling) -> Array:
    """Return unnormalized probabilities, float64 [vocab], after temperature, top-k, top-p and min-p."""
    weights: Array = np.exp((logits - logits.max()) / sampling.temperature)
    if sampling.top_k > 0:
        weights[weights < np.sort(weights)[::-1][: sampling.top_k][-1]] = 0
    if sampling.top_p < 1:
        ordered = np.sort(weights)[::-1]
        mass = np.cumsum(ordered) / ordered.sum()
        assert np.abs(mass - sampling.top_p).min() > NEAR, "mass near top_p: choose another value"
        weights[weights < ordered[np.argmax(mass >= sampling.top_p)]] = 0
    assert sampling.min_p == 0 or np.abs(weights - sampling.min_p).min() > NEAR, "choose another min_p"
    weights[weights < sampling.min_p] = 0
    return weights


def uniform(seed: int, index: int) -> float:
    """Return the uniform draw of a token: threefry2x32 of `fold_in(seed, index)`, 23 bits, in [0, 1)."""
    seed %= 2**64
    key = threefry((seed >> 32, seed & 0xFFFFFFFF), (0, index))
    first, second = threefry(key, (0, 0))
    return ((first ^ second) >> 9) / 2**23


def threefry(key: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Encrypt 64 bits with a 64-bit key, in 20 rounds.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    word = 0xFFFFFFFF
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (block[0] + keys[0]) & word, (block[1] + keys[1]) & word
    for group in range(5):
        for bits in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = (x + y) & word
            y = (y << bits | y >> 32 - bits) & word ^ x
        x = (x + keys[(group + 1) % 3]) & word
        y = (y + keys[(group + 2) % 3] + group + 1) & word
    return x, y
