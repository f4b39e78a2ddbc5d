"""Rotary position embedding: the facts that determine a model's table, and the table.

Runs in the build half, on any thread. We compute the table ourselves because EasyDeL loses the facts
of transformers 5 configurations and rounds its own table to bfloat16. Knows nothing of files.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt

from vinfer.checkpoint.rope import frequencies as rope_frequencies
from vinfer.errors import CheckpointError

RopeType = Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope", "proportional"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeFacts:
    """All facts that determine the rotary table of a model or of one layer type; JSON-serializable.

    Attributes:
        rotary_dim: number of rotated dimensions of a head, the first ones; even, at most the head dimension.
        factor: for every type but `default`. It has no effect in `dynamic` within the limit; in `longrope`
            it only determines `attention_factor`.
        original_max_position_embeddings: for `yarn`, `llama3` and `longrope`; in `dynamic`, the limit up to
            which its frequencies are the default ones.
        low_freq_factor, high_freq_factor: for `llama3` only.
        beta_fast, beta_slow, truncate, mscale_all_dim: for `yarn` only. `mscale_all_dim` is for families that
            also multiply their softmax scale (see `rope_frequencies.yarn_mscale`). It affects the table only
            through `attention_factor`, and is 0 if absent.
        short_factors, long_factors: for `longrope` only, rotary_dim / 2 each.
        num_rotated: for `proportional` only: pairs that rotate; the others have frequency 0.
        attention_factor: multiplies cosines and sines; 1 except for `yarn` and `longrope`.
        frequency_divisors: one per inverse frequency, applied last; how GGUF stores llama3 scaling
            (`rope_freqs.weight`).
    """

    theta: float
    rotary_dim: int
    rope_type: RopeType = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale_all_dim: float = 0.0
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    num_rotated: int = 0
    attention_factor: float = 1.0
    frequency_divisors: tuple[float, ...] | None = None

    @property
    def max_unextended_len(self) -> int | None:
        """The longest limit that leaves short sequences as they are; None if no limit changes them."""
        if self.rope_type in ("longrope", "dynamic"):
            return self.original_max_position_embeddings
        return None

    def inverse_frequencies(self, length: int) -> npt.NDArray[np.float32]:
        """Compute float32 [rotary_dim / 2], in the order of operations of transformers.

        `length` is the longest supported sequence. transformers chooses between the short and the long
        factors of `longrope` in each forward pass, and drops its KV cache when the choice changes. A server
        with a KV cache must choose once, as vLLM does: the long ones if `length` exceeds
        `original_max_position_embeddings`.

        Raises:
            CheckpointError: `dynamic` with `length` beyond the limit. There, frequencies would change with
                every token, and entries in the KV cache would become wrong.
        """
        frequencies: rope_frequencies.Frequencies = self._frequencies(length)
        if self.frequency_divisors is not None:
            frequencies = frequencies / np.asarray(self.frequency_divisors, dtype=np.float32)
        assert frequencies.dtype == np.float32
        return frequencies

    def table(self, length: int) -> npt.NDArray[np.float32]:
        """Compute float32 [length, rotary_dim]: cosines, then sines, times `attention_factor`.

        Raises:
            CheckpointError: see `inverse_frequencies`.
        """
        positions = np.arange(length, dtype=np.float32)
        angles = positions[:, None] * self.inverse_frequencies(length)[None, :]
        factor = np.float32(self.attention_factor)
        return np.concatenate([np.cos(angles) * factor, np.sin(angles) * factor], axis=-1)

    def _frequencies(self, length: int) -> rope_frequencies.Frequencies:
        match self.rope_type:
            case "yarn":
                return rope_frequencies.yarn(
                    self.theta,
                    self.rotary_dim,
                    factor=self.factor,
                    beta_fast=self.beta_fast,
                    beta_slow=self.beta_slow,
                    truncate=self.truncate,
                    original_length=self.original_max_position_embeddings,
                )
            case "longrope":
                is_long = length > self.original_max_position_embeddings
                factors = self.long_factors if is_long else self.short_factors
                assert factors is not None
                return rope_frequencies.longrope(self.theta, self.rotary_dim, factors=factors)
            case "proportional":
                return rope_frequencies.proportional(
                    self.theta, self.rotary_dim, factor=self.factor, num_rotated=self.num_rotated
                )
        frequencies: rope_frequencies.Frequencies = 1.0 / rope_frequencies.wavelengths(
            self.theta, self.rotary_dim
        )
        if self.rope_type == "linear":
            return frequencies / self.factor
        if self.rope_type == "llama3":
            return rope_frequencies.llama3(
                frequencies,
                factor=self.factor,
                low_freq_factor=self.low_freq_factor,
                high_freq_factor=self.high_freq_factor,
                original_length=self.original_max_position_embeddings,
            )
        if self.rope_type == "dynamic" and length > self.original_max_position_embeddings:
            raise CheckpointError(
                f"max_model_len is {length}, but rope type 'dynamic' is supported up to "
                f"max_position_embeddings = {self.original_max_position_embeddings}: lower max_model_len"
            )
        return frequencies
