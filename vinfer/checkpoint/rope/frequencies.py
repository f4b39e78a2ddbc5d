"""The arithmetic of rotary embedding: inverse frequencies and attention factors of every rope type.

Pure functions on NumPy and Python numbers, in transformers' order of float32 operations. Source:
transformers 5.5, `modeling_rope_utils.py`. Knows no configuration file; the facts are in `facts.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Frequencies = npt.NDArray[Any]
"""float32 [rotary_dim / 2]. NumPy's stubs do not model weak scalars and type each step as float64."""


def wavelengths(theta: float, rotary_dim: int, *, num_rotated: int | None = None) -> Frequencies:
    """Compute theta ^ (2 i / rotary_dim), float32, for the first `num_rotated` pairs (None: for all)."""
    # Python scalars stay weak, so every step is float32 as in torch.
    stop = rotary_dim if num_rotated is None else 2 * num_rotated
    exponents = np.arange(0, stop, 2, dtype=np.int64).astype(np.float32) / rotary_dim
    # Except this one: NumPy's float32 power is off by up to 4 units in the last place on some processors.
    return np.power(np.float64(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)


def llama3(
    frequencies: Frequencies,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_length: int,
) -> Frequencies:
    """Divide the frequencies of long waves by `factor`, keep those of short waves, and blend in between."""
    low_freq_wavelen = original_length / low_freq_factor
    high_freq_wavelen = original_length / high_freq_factor
    wavelen = 2 * math.pi / frequencies
    scaled = np.where(wavelen > low_freq_wavelen, frequencies / factor, frequencies)
    smooth = (original_length / wavelen - low_freq_factor) / (high_freq_factor - low_freq_factor)
    smoothed = (1 - smooth) * scaled / factor + smooth * scaled
    is_medium = ~(wavelen < high_freq_wavelen) & ~(wavelen > low_freq_wavelen)
    return np.where(is_medium, smoothed, scaled)


def yarn(
    theta: float,
    rotary_dim: int,
    *,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    truncate: bool,
    original_length: int,
) -> Frequencies:
    """Interpolate waves that turn fewer than `beta_slow` times in `original_length`; keep fast ones."""
    waves = wavelengths(theta, rotary_dim)

    def pair_that_turns(num_turns: float) -> float:
        return (rotary_dim * math.log(original_length / (num_turns * 2 * math.pi))) / (2 * math.log(theta))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001  # avoids a division by zero, as in transformers
    ramp = np.clip((np.arange(rotary_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    kept = 1 - ramp
    blended: Frequencies = 1.0 / (factor * waves) * (1 - kept) + 1.0 / waves * kept
    return blended


def longrope(theta: float, rotary_dim: int, *, factors: tuple[float, ...]) -> Frequencies:
    """Divide each frequency by its own factor."""
    divisors: Frequencies = np.asarray(factors, dtype=np.float32) * wavelengths(theta, rotary_dim)
    return 1.0 / divisors


def proportional(theta: float, rotary_dim: int, *, factor: float, num_rotated: int) -> Frequencies:
    """Rotate the first `num_rotated` pairs as a whole head would; the others keep frequency 0."""
    rotated = 1.0 / wavelengths(theta, rotary_dim, num_rotated=num_rotated)
    padded = np.concatenate([rotated, np.zeros(rotary_dim // 2 - num_rotated, dtype=np.float32)])
    return padded / factor


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """Compute YaRN's temperature: 1 without stretching, else 0.1 * mscale * ln(factor) + 1.

    DeepSeek V3 and its kin also multiply the softmax scale by the square of
    `yarn_mscale(factor, mscale_all_dim)`.
    """
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def yarn_attention_factor(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """Compute the default of yarn's `attention_factor`; an mscale of 0 means that it is absent."""
    if mscale and mscale_all_dim:
        return yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    return yarn_mscale(factor)


def longrope_attention_factor(factor: float, original_length: int) -> float:
    """Compute the default of longrope's `attention_factor`."""
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original_length))
