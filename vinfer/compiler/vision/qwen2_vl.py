"""The vision towers of Qwen2-VL and Qwen2.5-VL in plain XLA, from patches of images of any size to features.

A pure function of its weights, which are named as in the checkpoint. A program takes images up to a limit
of patches; the rest is padding that no patch attends to. Knows neither EasyDeL nor the decoder.

Source: transformers 5.5, `models/{qwen2_vl,qwen2_5_vl}/modeling_*.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from vinfer.bundle.manifest import ArraySpec
from vinfer.bundle.programs import ProgramShape
from vinfer.checkpoint.vision import Qwen2VLFacts
from vinfer.compiler.vision.tower import (
    Named,
    VisionWeights,
    activate,
    attend,
    layer_norm,
    linear,
    named_weights,
)
from vinfer.compiler.weights import Part, Weight

_NORM_EPSILON = 1e-6
_ROPE_THETA = 10_000.0


class Qwen2VLEncoder:
    """Encodes patches, rotated by row and column, and projects each square of them."""

    def __init__(self, facts: Qwen2VLFacts, weights: VisionWeights) -> None:
        self.hidden_size = facts.out_size
        self._facts = facts
        self.weights: tuple[Weight, ...] = tuple(_list_weights(facts, weights))

    def max_features(self, shape: ProgramShape) -> int:
        return self._facts.max_features(shape.image)

    def inputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of the inputs of `encode` besides weights."""
        patches = self.max_features(shape) * self._facts.merge_size**2
        return (
            ArraySpec(name="pixels", shape=(shape.rows, patches, self._facts.patch_values), dtype="float32"),
            ArraySpec(name="grids", shape=(shape.rows, 2), dtype="int32"),
        )

    def encode(self, weights: Sequence[jax.Array], *images: jax.Array) -> jax.Array:
        """Return features [images, max features, hidden_size]; those beyond an image's own are meaningless.

        Args:
            images: pixels [images, patches, values of a patch], with the patches of each feature in sequence,
                and grids int32 [images, 2], rows and columns of features; 0 for a padded row.
        """
        pixels, grids = images
        facts = self._facts
        named = named_weights(self.weights, weights)
        kernel = named["visual.patch_embed.proj.weight"]
        hidden = pixels.astype(kernel.dtype) @ kernel.reshape(kernel.shape[0], -1).T
        num_patches = pixels.shape[1]
        rows, columns = _places(grids, num_patches, facts.merge_size)
        table = _rotary_table(rows, columns, head_dim=facts.hidden_size // facts.num_heads)
        used = (grids[:, 0] * grids[:, 1] * facts.merge_size**2)[:, None]
        is_real = jnp.arange(num_patches, dtype=jnp.int32)[None, :] < used
        whole = jnp.where(is_real, 0, -1)
        # Assumes the maximum number of windows per row: only the grouping of patches matters.
        side = facts.window_size * facts.merge_size
        windows = jnp.where(is_real, rows // side * num_patches + columns // side, -1)
        for layer in range(facts.num_layers):
            groups = whole if layer in facts.full_layers else windows
            hidden = _layer(named, facts, f"visual.blocks.{layer}", hidden, table, groups)
        normal = _norm(named, facts, "visual.merger.ln_q", hidden)
        squares = normal.reshape(pixels.shape[0], -1, facts.merge_size**2 * facts.hidden_size)
        inner = activate(linear(named, "visual.merger.mlp.0", squares), "gelu")
        return linear(named, "visual.merger.mlp.2", inner)


def _places(grids: jax.Array, num_patches: int, merge_size: int) -> tuple[jax.Array, jax.Array]:
    """Return row and column of each patch, int32 [images, patches], in the order of merged squares."""
    patch = jnp.arange(num_patches, dtype=jnp.int32)[None, :]
    square, within = patch // merge_size**2, patch % merge_size**2
    squares_per_row = jnp.maximum(grids[:, 1:], 1)
    rows = square // squares_per_row * merge_size + within // merge_size
    columns = square % squares_per_row * merge_size + within % merge_size
    return rows, columns


def _rotary_table(rows: jax.Array, columns: jax.Array, *, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines, float32 [images, patches, 1, head_dim / 2]: half by row, half by column."""
    exponents = jnp.arange(0, head_dim // 2, 2, dtype=jnp.float32) / (head_dim // 2)
    frequencies = 1.0 / _ROPE_THETA**exponents
    angles = jnp.concatenate(
        [place.astype(jnp.float32)[:, :, None] * frequencies for place in (rows, columns)], axis=-1
    )
    return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]


def _layer(
    named: Named,
    facts: Qwen2VLFacts,
    name: str,
    hidden: jax.Array,
    table: tuple[jax.Array, jax.Array],
    groups: jax.Array,
) -> jax.Array:
    normal = _norm(named, facts, f"{name}.norm1", hidden)
    query, key, value = (
        linear(named, f"{name}.attn.{part}", normal).reshape(*normal.shape[:2], facts.num_heads, -1)
        for part in "qkv"
    )
    seen = attend(_rotate(query, table), _rotate(key, table), value, groups)
    hidden = hidden + linear(named, f"{name}.attn.proj", seen.reshape(hidden.shape))
    normal = _norm(named, facts, f"{name}.norm2", hidden)
    if facts.is_gated:
        gate = activate(linear(named, f"{name}.mlp.gate_proj", normal), facts.activation)
        inner = gate * linear(named, f"{name}.mlp.up_proj", normal)
        return hidden + linear(named, f"{name}.mlp.down_proj", inner)
    inner = activate(linear(named, f"{name}.mlp.fc1", normal), facts.activation)
    return hidden + linear(named, f"{name}.mlp.fc2", inner)


def _norm(named: Named, facts: Qwen2VLFacts, name: str, hidden: jax.Array) -> jax.Array:
    if not facts.is_gated:
        return layer_norm(named, name, hidden, _NORM_EPSILON)
    wide = hidden.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + _NORM_EPSILON)
    return named[f"{name}.weight"] * normal.astype(hidden.dtype)


def _rotate(states: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate heads [images, patches, heads, head_dim] in float32, like the reference for every dtype."""
    cosines, sines = table
    first, second = jnp.split(states.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.concatenate(turned, axis=-1).astype(states.dtype)


def _list_weights(facts: Qwen2VLFacts, weights: VisionWeights) -> list[Weight]:
    hidden, patch = facts.hidden_size, facts.patch_size
    merged = hidden * facts.merge_size**2
    kernel = (hidden, facts.num_channels, facts.temporal_patch_size, patch, patch)
    listed = [weights.plain("visual.patch_embed.proj.weight", kernel)]
    for layer in range(facts.num_layers):
        name = f"visual.blocks.{layer}"
        listed += _qkv_weights(f"{name}.attn", hidden, weights)
        listed += weights.linear(f"{name}.attn.proj", hidden, hidden, splits=0)
        first, last = (("gate_proj", "up_proj"), "down_proj") if facts.is_gated else (("fc1",), "fc2")
        for linear_name in first:
            listed += weights.linear(f"{name}.mlp.{linear_name}", hidden, facts.inner_size, splits=1)
        listed += weights.linear(f"{name}.mlp.{last}", facts.inner_size, hidden, splits=0)
        for norm in ("norm1", "norm2"):
            listed += _norm_weights(f"{name}.{norm}", facts, weights)
    listed += _norm_weights("visual.merger.ln_q", facts, weights)
    listed += weights.linear("visual.merger.mlp.0", merged, merged, splits=1)
    listed += weights.linear("visual.merger.mlp.2", merged, facts.out_size, splits=0)
    return listed


def _norm_weights(name: str, facts: Qwen2VLFacts, weights: VisionWeights) -> list[Weight]:
    if facts.is_gated:
        return [weights.plain(f"{name}.weight", (facts.hidden_size,))]
    return weights.norm(name, facts.hidden_size)


def _qkv_weights(attention: str, hidden: int, weights: VisionWeights) -> list[Weight]:
    """Split queries, keys and values, so that tp splits each of them between heads."""
    listed = []
    for place, part in enumerate("qkv"):
        rows = (slice(place * hidden, (place + 1) * hidden),)
        for weight in weights.linear(f"{attention}.{part}", hidden, hidden, splits=1):
            kind = weight.name.rpartition(".")[2]
            source = Part(f"{attention}.qkv.{kind}", index=rows, is_transposed=kind == "weight")
            listed.append(dataclasses.replace(weight, parts=(source,)))
    return listed
