"""Rotary position embedding: its facts, and the inverse frequencies as transformers computes them.

Runs in the build half, on any thread. We compute the table ourselves because EasyDeL loses the facts
of transformers 5 configurations and rounds its own table to bfloat16. Knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

RopeType = Literal["default", "linear", "llama3"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeFacts:
    """All that decides the rotary table of a model.

    Attributes:
        rotary_dim: rotated dimensions of a head; here always the whole head.
        factor: `linear` and `llama3` only.
        low_freq_factor, high_freq_factor, original_max_position_embeddings: `llama3` only.
        frequency_divisors: one per inverse frequency, applied last; how GGUF stores llama3 scaling
            (`rope_freqs.weight`).
    """

    theta: float
    rotary_dim: int
    rope_type: RopeType = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: int = 0
    frequency_divisors: tuple[float, ...] | None = None

    @property
    def attention_factor(self) -> float:
        """Factor on cos and sin; 1 for every type served (yarn and longrope would differ)."""
        return 1.0

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Compute float32 [rotary_dim / 2], in the order of operations of transformers.

        Source: transformers 5.5, `modeling_rope_utils.py`.
        """
        # Python scalars stay weak, so every step is float32 as in torch.
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.int64).astype(np.float32) / self.rotary_dim
        # NumPy's stubs do not know weak scalars and take each step for float64.
        frequencies: npt.NDArray[Any] = 1.0 / np.power(np.float32(self.theta), exponents)
        if self.rope_type == "linear":
            frequencies = frequencies / self.factor
        elif self.rope_type == "llama3":
            frequencies = self._llama3(frequencies)
        if self.frequency_divisors is not None:
            frequencies = frequencies / np.asarray(self.frequency_divisors, dtype=np.float32)
        assert frequencies.dtype == np.float32
        return frequencies

    def _llama3(self, frequencies: npt.NDArray[Any]) -> npt.NDArray[Any]:
        low_freq_wavelen = self.original_max_position_embeddings / self.low_freq_factor
        high_freq_wavelen = self.original_max_position_embeddings / self.high_freq_factor
        wavelen = 2 * math.pi / frequencies
        scaled = np.where(wavelen > low_freq_wavelen, frequencies / self.factor, frequencies)
        smooth = (self.original_max_position_embeddings / wavelen - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        smoothed = (1 - smooth) * scaled / self.factor + smooth * scaled
        is_medium = ~(wavelen < high_freq_wavelen) & ~(wavelen > low_freq_wavelen)
        return np.where(is_medium, smoothed, scaled)
