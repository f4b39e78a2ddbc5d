"""Image encoders in plain XLA: a vision tower and a projection to the decoder's width.

Pure functions of weights, which are named as in the checkpoint. Knows neither EasyDeL nor the decoder.

Source: transformers 5.5, `models/{llava,vipllava,gemma3}/modeling_*.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vinfer.bundle.manifest import ArraySpec
from vinfer.bundle.programs import ProgramShape
from vinfer.checkpoint.vision import Gemma3Facts, LlavaFacts, Qwen2VLFacts
from vinfer.compiler.vision.qwen2_vl import Qwen2VLEncoder
from vinfer.compiler.vision.tower import (
    TOWER,
    VisionWeights,
    activate,
    layer_norm,
    linear,
    named_weights,
    tower_states,
)
from vinfer.compiler.weights import Weight

_PROJECTOR = "multi_modal_projector"
_PROJECTOR_NORM = f"{_PROJECTOR}.projector_layernorm"


class _SquareEncoder:
    """The common part of encoders whose images all have one size, and so the same number of features."""

    def __init__(self, facts: LlavaFacts | Gemma3Facts) -> None:
        self.hidden_size = facts.out_size
        self._num_features = facts.num_features

    def max_features(self, shape: ProgramShape) -> int:
        return self._num_features

    def inputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of the inputs of `encode` besides weights: pixels [rows, *image]."""
        return (ArraySpec(name="pixels", shape=(shape.rows, *shape.image), dtype="float32"),)


class LlavaEncoder(_SquareEncoder):
    """Concatenates hidden states of the tower and applies two layers; ViP-LLaVA applies a norm first."""

    def __init__(self, facts: LlavaFacts, weights: VisionWeights) -> None:
        super().__init__(facts)
        self._facts = facts
        joined = facts.tower.hidden_size * len(facts.feature_layers)
        out, has_bias = facts.out_size, facts.projector_has_bias
        self.weights: tuple[Weight, ...] = (
            *weights.tower(facts.tower, num_layers=max(facts.feature_layers)),
            *([] if facts.projector_norm_epsilon is None else weights.norm(_PROJECTOR_NORM, joined)),
            *weights.linear(f"{_PROJECTOR}.linear_1", joined, out, splits=1, has_bias=has_bias),
            *weights.linear(f"{_PROJECTOR}.linear_2", out, out, splits=0, has_bias=has_bias),
        )

    def encode(self, weights: Sequence[jax.Array], *images: jax.Array) -> jax.Array:
        """Return features [images, num_features, hidden_size].

        Args:
            images: one array, pixels [images, channels, height, width].
        """
        (pixels,) = images
        facts, named = self._facts, named_weights(self.weights, weights)
        states = tower_states(named, facts.tower, pixels, num_layers=max(facts.feature_layers))
        first = 1 if facts.drops_first else 0
        chosen = jnp.concatenate([states[layer][:, first:] for layer in facts.feature_layers], axis=-1)
        if facts.projector_norm_epsilon is not None:
            chosen = layer_norm(named, _PROJECTOR_NORM, chosen, facts.projector_norm_epsilon)
        inner = activate(linear(named, f"{_PROJECTOR}.linear_1", chosen), facts.projector_activation)
        return linear(named, f"{_PROJECTOR}.linear_2", inner)


class Gemma3Encoder(_SquareEncoder):
    """Averages the tower's last hidden states over squares, then normalizes and projects them."""

    def __init__(self, facts: Gemma3Facts, weights: VisionWeights) -> None:
        super().__init__(facts)
        self._facts = facts
        hidden = facts.tower.hidden_size
        self.weights: tuple[Weight, ...] = (
            *weights.tower(facts.tower, num_layers=facts.tower.num_layers),
            *weights.norm(f"{TOWER}.post_layernorm", hidden),
            weights.plain(f"{_PROJECTOR}.mm_soft_emb_norm.weight", (hidden,)),
            weights.plain(f"{_PROJECTOR}.mm_input_projection_weight", (hidden, facts.out_size)),
        )

    def encode(self, weights: Sequence[jax.Array], *images: jax.Array) -> jax.Array:
        """Return features [images, num_features, hidden_size].

        Args:
            images: one array, pixels [images, channels, height, width].
        """
        (pixels,) = images
        facts, named = self._facts, named_weights(self.weights, weights)
        tower = facts.tower
        *_, last = tower_states(named, tower, pixels, num_layers=tower.num_layers)
        last = layer_norm(named, f"{TOWER}.post_layernorm", last, tower.norm_epsilon)
        means = _mean_of_squares(last, tower.patches_per_side, facts.features_per_side)
        normal = _rms_norm(means, named[f"{_PROJECTOR}.mm_soft_emb_norm.weight"], tower.norm_epsilon)
        return normal @ named[f"{_PROJECTOR}.mm_input_projection_weight"]


Encoder = LlavaEncoder | Gemma3Encoder | Qwen2VLEncoder


def make_encoder(facts: LlavaFacts | Gemma3Facts | Qwen2VLFacts, *, dtype: str, tp: int) -> Encoder:
    """Build the encoder for some facts; `dtype` and `tp` as in `VisionWeights`."""
    weights = VisionWeights(dtype, tp)
    if isinstance(facts, Qwen2VLFacts):
        return Qwen2VLEncoder(facts, weights)
    if isinstance(facts, Gemma3Facts):
        return Gemma3Encoder(facts, weights)
    return LlavaEncoder(facts, weights)


def _mean_of_squares(patches: jax.Array, per_side: int, squares_per_side: int) -> jax.Array:
    """Average patches [images, per_side**2, hidden] over squares, in float32."""
    side = per_side // squares_per_side
    grid = patches.astype(jnp.float32).reshape(
        patches.shape[0], squares_per_side, side, squares_per_side, side, -1
    )
    return grid.mean(axis=(2, 4)).reshape(patches.shape[0], squares_per_side**2, -1).astype(patches.dtype)


def _rms_norm(hidden: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """Normalize in float32 and multiply by 1 + weight, like every norm in Gemma."""
    wide = hidden.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)
    return (normal * (1 + weight.astype(jnp.float32))).astype(hidden.dtype)
