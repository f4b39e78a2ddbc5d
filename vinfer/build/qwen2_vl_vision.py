"""Qwen2-VL's vision tower in plain XLA: patches of pictures of any size to features of the decoder's width.

A function of its weights, which are named as in the checkpoint. A program takes pictures of up to so many
patches; what a picture does not fill is padding that nothing looks at. Knows neither EasyDeL nor the decoder.

Source: transformers 5.5, `models/qwen2_vl/modeling_qwen2_vl.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vinfer.build.vision_tower import Named, VisionWeights, activate, layer_norm, linear
from vinfer.build.weights import Part, Weight
from vinfer.bundle import ArraySpec, ProgramShape
from vinfer.checkpoint.vision import Qwen2VLFacts

# Patches that look at all others at once: scores of 5000 patches would take 1.6 GB per picture.
QUERY_BLOCK = 512
_NORM_EPSILON = 1e-6
_ROPE_THETA = 10_000.0
_UNSEEN = -1e30


class Qwen2VLEncoder:
    """Patches, rotated by row and column, and the projection of each square of them."""

    def __init__(self, facts: Qwen2VLFacts, weights: VisionWeights) -> None:
        self.hidden_size = facts.out_size
        self._facts = facts
        self.weights: tuple[Weight, ...] = tuple(_list_weights(facts, weights))

    def max_features(self, shape: ProgramShape) -> int:
        return self._facts.max_features(shape.image)

    def inputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of what `encode` takes besides weights."""
        patches = self.max_features(shape) * self._facts.merge_size**2
        return (
            ArraySpec(name="pixels", shape=(shape.rows, patches, self._facts.patch_values), dtype="float32"),
            ArraySpec(name="grids", shape=(shape.rows, 2), dtype="int32"),
        )

    def encode(self, weights: Sequence[jax.Array], *pictures: jax.Array) -> jax.Array:
        """Return features [pictures, max features, hidden_size]; those beyond a picture's own mean nothing.

        Args:
            pictures: pixels [pictures, patches, values of a patch], the patches of each feature one after the
                other, and grids int32 [pictures, 2], rows and columns of features; 0 where a row is padding.
        """
        pixels, grids = pictures
        facts = self._facts
        named = {spec.name: array for spec, array in zip(self.weights, weights, strict=True)}
        kernel = named["visual.patch_embed.proj.weight"]
        hidden = pixels.astype(kernel.dtype) @ kernel.reshape(kernel.shape[0], -1).T
        num_patches = pixels.shape[1]
        rows, columns = _places(grids, num_patches, facts.merge_size)
        table = _rotary_table(rows, columns, head_dim=facts.hidden_size // facts.num_heads)
        used = (grids[:, 0] * grids[:, 1] * facts.merge_size**2)[:, None]
        is_real = jnp.arange(num_patches, dtype=jnp.int32)[None, :] < used
        for layer in range(facts.num_layers):
            hidden = _layer(named, facts, f"visual.blocks.{layer}", hidden, table, is_real)
        normal = layer_norm(named, "visual.merger.ln_q", hidden, _NORM_EPSILON)
        squares = normal.reshape(pixels.shape[0], -1, facts.merge_size**2 * facts.hidden_size)
        inner = activate(linear(named, "visual.merger.mlp.0", squares), "gelu")
        return linear(named, "visual.merger.mlp.2", inner)


def _places(grids: jax.Array, num_patches: int, merge_size: int) -> tuple[jax.Array, jax.Array]:
    """Return row and column of each patch, int32 [pictures, patches], in the order of merged squares."""
    patch = jnp.arange(num_patches, dtype=jnp.int32)[None, :]
    square, within = patch // merge_size**2, patch % merge_size**2
    squares_per_row = jnp.maximum(grids[:, 1:], 1)
    rows = square // squares_per_row * merge_size + within // merge_size
    columns = square % squares_per_row * merge_size + within % merge_size
    return rows, columns


def _rotary_table(rows: jax.Array, columns: jax.Array, *, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines, float32 [pictures, patches, 1, head_dim / 2]: half by row, half by column."""
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
    is_real: jax.Array,
) -> jax.Array:
    normal = layer_norm(named, f"{name}.norm1", hidden, _NORM_EPSILON)
    query, key, value = (
        linear(named, f"{name}.attn.{part}", normal).reshape(*normal.shape[:2], facts.num_heads, -1)
        for part in "qkv"
    )
    seen = _attend(_rotate(query, table), _rotate(key, table), value, is_real)
    hidden = hidden + linear(named, f"{name}.attn.proj", seen.reshape(hidden.shape))
    normal = layer_norm(named, f"{name}.norm2", hidden, _NORM_EPSILON)
    inner = activate(linear(named, f"{name}.mlp.fc1", normal), facts.activation)
    return hidden + linear(named, f"{name}.mlp.fc2", inner)


def _rotate(states: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate heads [pictures, patches, heads, head_dim] in float32, as the reference does for every dtype."""
    cosines, sines = table
    first, second = jnp.split(states.astype(jnp.float32), 2, axis=-1)
    turned = [first * cosines - second * sines, second * cosines + first * sines]
    return jnp.concatenate(turned, axis=-1).astype(states.dtype)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array, is_real: jax.Array) -> jax.Array:
    """Let every patch see every real patch of its picture."""
    scale = query.shape[-1] ** -0.5

    def seen_by(some: jax.Array) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", some, key, preferred_element_type=jnp.float32) * scale
        # Not minus infinity: a picture that is all padding has no real patch.
        scores = jnp.where(is_real[:, None, None, :], scores, _UNSEEN)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    return _in_blocks(seen_by, query)


def _in_blocks(seen_by: Callable[[jax.Array], jax.Array], query: jax.Array) -> jax.Array:
    """Apply to QUERY_BLOCK patches [pictures, patches, ...] at a time."""
    pictures, length = query.shape[:2]
    if length <= QUERY_BLOCK:
        return seen_by(query)
    missing = -length % QUERY_BLOCK
    padded = jnp.pad(query, ((0, 0), (0, missing), (0, 0), (0, 0)))
    blocks = padded.reshape(pictures, -1, QUERY_BLOCK, *query.shape[2:]).swapaxes(0, 1)
    seen = jax.lax.map(seen_by, blocks).swapaxes(0, 1)
    return seen.reshape(padded.shape)[:, :length]


def _list_weights(facts: Qwen2VLFacts, weights: VisionWeights) -> list[Weight]:
    hidden, patch = facts.hidden_size, facts.patch_size
    merged = hidden * facts.merge_size**2
    kernel = (hidden, facts.num_channels, facts.temporal_patch_size, patch, patch)
    listed = [weights.plain("visual.patch_embed.proj.weight", kernel)]
    for layer in range(facts.num_layers):
        name = f"visual.blocks.{layer}"
        listed += _qkv_weights(f"{name}.attn", hidden, weights)
        listed += weights.linear(f"{name}.attn.proj", hidden, hidden, splits=0)
        listed += weights.linear(f"{name}.mlp.fc1", hidden, facts.inner_size, splits=1)
        listed += weights.linear(f"{name}.mlp.fc2", facts.inner_size, hidden, splits=0)
        listed += [*weights.norm(f"{name}.norm1", hidden), *weights.norm(f"{name}.norm2", hidden)]
    listed += weights.norm("visual.merger.ln_q", hidden)
    listed += weights.linear("visual.merger.mlp.0", merged, merged, splits=1)
    listed += weights.linear("visual.merger.mlp.2", merged, facts.out_size, splits=0)
    return listed


def _qkv_weights(attention: str, hidden: int, weights: VisionWeights) -> list[Weight]:
    """Take queries, keys and values apart, so that tp splits each of them between heads."""
    listed = []
    for place, part in enumerate("qkv"):
        rows = (slice(place * hidden, (place + 1) * hidden),)
        for weight in weights.linear(f"{attention}.{part}", hidden, hidden, splits=1):
            kind = weight.name.rpartition(".")[2]
            source = Part(f"{attention}.qkv.{kind}", index=rows, is_transposed=kind == "weight")
            listed.append(dataclasses.replace(weight, parts=(source,)))
    return listed
