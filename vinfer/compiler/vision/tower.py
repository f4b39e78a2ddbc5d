"""The vision towers of CLIP and SigLIP in plain XLA, from pixels to one hidden state per patch.

A pure function of its weights, which are named as in the checkpoint; layers that no feature needs are
omitted. Knows neither EasyDeL nor the projection of the hidden states.

Source: transformers 5.5, `models/clip/modeling_clip.py` and `models/siglip/modeling_siglip.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from vinfer.bundle.manifest import PartitionAxes
from vinfer.checkpoint.vision import TowerFacts
from vinfer.compiler.weights import Part, Weight

TOWER = "vision_tower.vision_model"
# Patches that attend at once: scores of all 4096 patches of Gemma 3 would take a gigabyte per image.
QUERY_BLOCK = 512
_UNSEEN = -1e30

Named = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class VisionWeights:
    """Describes the weights of an encoder.

    Attributes:
        dtype: name of the weights' dtype, also used for products.
        tp: devices along that axis; it splits the heads and inner layers that it divides.
    """

    dtype: str
    tp: int

    def linear(
        self, name: str, num_inputs: int, num_outputs: int, *, splits: int, has_bias: bool = True
    ) -> list[Weight]:
        """List a kernel [in, out] and its bias; `splits` is the axis of the kernel that tp splits."""
        shape = (num_inputs, num_outputs)
        is_split = shape[splits] % self.tp == 0
        axes = tuple("tp" if is_split and axis == splits else None for axis in range(2))
        kernel = self._weight(f"{name}.weight", shape, axes, is_transposed=True)
        if not has_bias:
            return [kernel]
        return [kernel, self._weight(f"{name}.bias", (num_outputs,), axes[1:])]

    def norm(self, name: str, size: int) -> list[Weight]:
        return [self.plain(f"{name}.{kind}", (size,)) for kind in ("weight", "bias")]

    def plain(self, name: str, shape: tuple[int, ...]) -> Weight:
        """Describe a weight that is used as stored and replicated on every device."""
        return self._weight(name, shape, (None,) * len(shape))

    def tower(self, facts: TowerFacts, *, num_layers: int) -> list[Weight]:
        """List the tower's weights up to layer `num_layers`."""
        hidden, inner = facts.hidden_size, facts.inner_size
        patch = (hidden, facts.num_channels, facts.patch_size, facts.patch_size)
        weights = [
            self.plain(f"{TOWER}.embeddings.patch_embedding.weight", patch),
            self.plain(f"{TOWER}.embeddings.position_embedding.weight", (facts.num_positions, hidden)),
        ]
        if facts.is_clip:
            weights.append(self.plain(f"{TOWER}.embeddings.class_embedding", (hidden,)))
            weights += self.norm(f"{TOWER}.pre_layrnorm", hidden)
        else:
            weights.append(self.plain(f"{TOWER}.embeddings.patch_embedding.bias", (hidden,)))
        for layer in range(num_layers):
            name = f"{TOWER}.encoder.layers.{layer}"
            for projection in ("q_proj", "k_proj", "v_proj"):
                weights += self.linear(f"{name}.self_attn.{projection}", hidden, hidden, splits=1)
            weights += self.linear(f"{name}.self_attn.out_proj", hidden, hidden, splits=0)
            weights += self.linear(f"{name}.mlp.fc1", hidden, inner, splits=1)
            weights += self.linear(f"{name}.mlp.fc2", inner, hidden, splits=0)
            weights += self.norm(f"{name}.layer_norm1", hidden)
            weights += self.norm(f"{name}.layer_norm2", hidden)
        return weights

    def _weight(
        self, name: str, shape: tuple[int, ...], axes: PartitionAxes, *, is_transposed: bool = False
    ) -> Weight:
        return Weight(
            name=name,
            shape=shape,
            dtype=self.dtype,
            axes=axes,
            parts=(Part(name, is_transposed=is_transposed),),
        )


def tower_states(named: Named, facts: TowerFacts, pixels: jax.Array, *, num_layers: int) -> list[jax.Array]:
    """Return the input of the first layer and the output of each of the first `num_layers`.

    Args:
        pixels: [images, channels, height, width].

    Returns:
        Arrays [images, positions, hidden], CLIP's class token first.
    """
    hidden = _embed(named, facts, pixels)
    if facts.is_clip:
        hidden = layer_norm(named, f"{TOWER}.pre_layrnorm", hidden, facts.norm_epsilon)
    states = [hidden]
    for layer in range(num_layers):
        states.append(_layer(named, facts, f"{TOWER}.encoder.layers.{layer}", states[-1]))
    return states


def named_weights(specs: Sequence[Weight], weights: Sequence[jax.Array]) -> Named:
    return {spec.name: array for spec, array in zip(specs, weights, strict=True)}


def linear(named: Named, name: str, hidden: jax.Array) -> jax.Array:
    result = hidden @ named[f"{name}.weight"]
    bias = named.get(f"{name}.bias")
    return result if bias is None else result + bias


def layer_norm(named: Named, name: str, hidden: jax.Array, epsilon: float) -> jax.Array:
    """Normalize in float32, like torch for every dtype."""
    wide = hidden.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    weight, bias = (named[f"{name}.{kind}"].astype(jnp.float32) for kind in ("weight", "bias"))
    return (normal * weight + bias).astype(hidden.dtype)


def activate(inner: jax.Array, name: str) -> jax.Array:
    if name == "quick_gelu":
        return inner * jax.nn.sigmoid(1.702 * inner)
    if name == "silu":
        return jax.nn.silu(inner)
    return jax.nn.gelu(inner, approximate=name != "gelu")


def attend(query: jax.Array, key: jax.Array, value: jax.Array, groups: jax.Array | None = None) -> jax.Array:
    """Attend from every patch of an image to all others, `QUERY_BLOCK` at a time; products in float32.

    Args:
        query, key, value: [images, patches, heads, head_dim].
        groups: int32 [images, patches]: a patch sees only its own group. Padding is a group too.

    Returns:
        [images, patches, heads, head_dim].
    """
    scale = query.shape[-1] ** -0.5

    def seen_by(some: jax.Array, own: jax.Array | None) -> jax.Array:
        scores = jnp.einsum("bqhd,bkhd->bhqk", some, key, preferred_element_type=jnp.float32) * scale
        if groups is not None and own is not None:
            scores = jnp.where(own[:, None, :, None] == groups[:, None, None, :], scores, _UNSEEN)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value)

    images, length = query.shape[:2]
    if length <= QUERY_BLOCK:
        return seen_by(query, groups)

    def blocks(array: jax.Array) -> jax.Array:
        padding = ((0, 0), (0, -length % QUERY_BLOCK), *[(0, 0)] * (array.ndim - 2))
        padded = jnp.pad(array, padding)
        return padded.reshape(images, -1, QUERY_BLOCK, *array.shape[2:]).swapaxes(0, 1)

    own = None if groups is None else blocks(groups)
    seen = jax.lax.map(lambda block: seen_by(*block), (blocks(query), own)).swapaxes(0, 1)
    return seen.reshape(images, -1, *query.shape[2:])[:, :length]


def _embed(named: Named, facts: TowerFacts, pixels: jax.Array) -> jax.Array:
    """Split into patches, project each, prepend a class token, add positions."""
    kernel = named[f"{TOWER}.embeddings.patch_embedding.weight"]
    hidden, channels, patch, _ = kernel.shape
    images, side = pixels.shape[0], facts.patches_per_side
    # Patches cut by the image's edge are dropped, as in the reference's convolution.
    kept = pixels[:, :, : side * patch, : side * patch].astype(kernel.dtype)
    squares = kept.reshape(images, channels, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
    patches = squares.reshape(images, side * side, -1) @ kernel.reshape(hidden, -1).T
    if facts.is_clip:
        of_class = named[f"{TOWER}.embeddings.class_embedding"].astype(patches.dtype)
        patches = jnp.concatenate([jnp.broadcast_to(of_class, (images, 1, hidden)), patches], axis=1)
    else:
        patches += named[f"{TOWER}.embeddings.patch_embedding.bias"]
    return patches + named[f"{TOWER}.embeddings.position_embedding.weight"][None]


def _layer(named: Named, facts: TowerFacts, name: str, hidden: jax.Array) -> jax.Array:
    normal = layer_norm(named, f"{name}.layer_norm1", hidden, facts.norm_epsilon)
    hidden = hidden + _attend(named, f"{name}.self_attn", normal, facts.num_heads)
    normal = layer_norm(named, f"{name}.layer_norm2", hidden, facts.norm_epsilon)
    inner = activate(linear(named, f"{name}.mlp.fc1", normal), facts.activation)
    return hidden + linear(named, f"{name}.mlp.fc2", inner)


def _attend(named: Named, name: str, hidden: jax.Array, num_heads: int) -> jax.Array:
    """Attend from every position to every other."""
    query, key, value = (
        linear(named, f"{name}.{projection}", hidden).reshape(*hidden.shape[:2], num_heads, -1)
        for projection in ("q_proj", "k_proj", "v_proj")
    )
    seen = attend(query, key, value)
    return linear(named, f"{name}.out_proj", seen.reshape(hidden.shape))
