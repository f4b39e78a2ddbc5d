"""CLIP's vision tower and LLaVA's projector in plain XLA: pixels to features of the decoder's width.

A function of its weights, which are named as in the checkpoint; layers that no feature is taken from are left
out. Knows neither EasyDeL nor the decoder.

Source: transformers 5.5, `models/clip/modeling_clip.py` and `models/llava/modeling_llava.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from vinfer.build.weights import Part, Weight
from vinfer.bundle import ArraySpec, PartitionAxes, ProgramShape
from vinfer.checkpoint.vision import ClipFacts

_TOWER = "vision_tower.vision_model"
_PROJECTOR = "multi_modal_projector"

Named = Mapping[str, jax.Array]


class ClipEncoder:
    """Pictures to features.

    Args:
        dtype: name of the weights' dtype, in which products are computed too.
        tp: devices along that axis: heads and inner layers are split over it where it divides them.
    """

    def __init__(self, facts: ClipFacts, *, dtype: str, tp: int) -> None:
        self.num_features = facts.num_features
        self.hidden_size = facts.out_size
        self._facts = facts
        self._dtype = dtype
        self._tp = tp
        self.weights = tuple(self._list_weights())

    def inputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]:
        """Return the specs of what `encode` takes besides weights: pixels [rows, *image]."""
        return (ArraySpec(name="pixels", shape=(shape.rows, *shape.image), dtype="float32"),)

    def encode(self, weights: Sequence[jax.Array], *pictures: jax.Array) -> jax.Array:
        """Return features [pictures, num_features, hidden_size].

        Args:
            pictures: one array, pixels [pictures, channels, height, width].
        """
        (pixels,) = pictures
        named = {weight.name: array for weight, array in zip(self.weights, weights, strict=True)}
        facts = self._facts
        hidden = _norm(self._embed(named, pixels), named, f"{_TOWER}.pre_layrnorm", facts.norm_epsilon)
        states = [hidden]
        for layer in range(max(facts.feature_layers)):
            hidden = self._layer(named, f"{_TOWER}.encoder.layers.{layer}", hidden)
            states.append(hidden)
        first = 0 if facts.has_class_token else 1
        chosen = jnp.concatenate([states[layer][:, first:] for layer in facts.feature_layers], axis=-1)
        inner = _activate(_linear(named, f"{_PROJECTOR}.linear_1", chosen), facts.projector_activation)
        return _linear(named, f"{_PROJECTOR}.linear_2", inner)

    def _embed(self, named: Named, pixels: jax.Array) -> jax.Array:
        """Cut into patches, project each, put the class token first, add positions."""
        kernel = named[f"{_TOWER}.embeddings.patch_embedding.weight"]
        hidden, channels, patch, _ = kernel.shape
        pictures = pixels.shape[0]
        side = self._facts.image_size // patch
        # A patch that the picture's edge would cut is left out, as by the convolution of the reference.
        kept = pixels[:, :, : side * patch, : side * patch].astype(kernel.dtype)
        squares = kept.reshape(pictures, channels, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
        patches = squares.reshape(pictures, side * side, -1) @ kernel.reshape(hidden, -1).T
        of_class = jnp.broadcast_to(
            named[f"{_TOWER}.embeddings.class_embedding"].astype(patches.dtype), (pictures, 1, hidden)
        )
        positions = named[f"{_TOWER}.embeddings.position_embedding.weight"]
        return jnp.concatenate([of_class, patches], axis=1) + positions[None]

    def _layer(self, named: Named, name: str, hidden: jax.Array) -> jax.Array:
        epsilon = self._facts.norm_epsilon
        hidden = hidden + self._attend(
            named, f"{name}.self_attn", _norm(hidden, named, f"{name}.layer_norm1", epsilon)
        )
        inner = _linear(named, f"{name}.mlp.fc1", _norm(hidden, named, f"{name}.layer_norm2", epsilon))
        return hidden + _linear(named, f"{name}.mlp.fc2", _activate(inner, self._facts.activation))

    def _attend(self, named: Named, name: str, hidden: jax.Array) -> jax.Array:
        """Let every patch see every other, and the class token."""
        heads = (*hidden.shape[:2], self._facts.num_heads, -1)
        query, key, value = (
            _linear(named, f"{name}.{projection}", hidden).reshape(heads)
            for projection in ("q_proj", "k_proj", "v_proj")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
        seen = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return _linear(named, f"{name}.out_proj", seen.reshape(hidden.shape))

    def _list_weights(self) -> list[Weight]:
        facts = self._facts
        hidden, inner, out = facts.hidden_size, facts.inner_size, facts.out_size
        joined = hidden * len(facts.feature_layers)
        patch = (hidden, facts.num_channels, facts.patch_size, facts.patch_size)
        weights = [
            self._plain(f"{_TOWER}.embeddings.class_embedding", (hidden,)),
            self._plain(f"{_TOWER}.embeddings.patch_embedding.weight", patch),
            self._plain(f"{_TOWER}.embeddings.position_embedding.weight", (facts.num_patches + 1, hidden)),
            *self._norm_weights(f"{_TOWER}.pre_layrnorm"),
        ]
        for layer in range(max(facts.feature_layers)):
            name = f"{_TOWER}.encoder.layers.{layer}"
            for projection in ("q_proj", "k_proj", "v_proj"):
                weights += self._linear_weights(f"{name}.self_attn.{projection}", hidden, hidden, splits=1)
            weights += self._linear_weights(f"{name}.self_attn.out_proj", hidden, hidden, splits=0)
            weights += self._linear_weights(f"{name}.mlp.fc1", hidden, inner, splits=1)
            weights += self._linear_weights(f"{name}.mlp.fc2", inner, hidden, splits=0)
            weights += [
                *self._norm_weights(f"{name}.layer_norm1"),
                *self._norm_weights(f"{name}.layer_norm2"),
            ]
        has_bias = facts.projector_has_bias
        weights += self._linear_weights(f"{_PROJECTOR}.linear_1", joined, out, splits=1, has_bias=has_bias)
        weights += self._linear_weights(f"{_PROJECTOR}.linear_2", out, out, splits=0, has_bias=has_bias)
        return weights

    def _linear_weights(
        self, name: str, num_inputs: int, num_outputs: int, *, splits: int, has_bias: bool = True
    ) -> list[Weight]:
        """List a kernel [in, out] and its bias; `splits` is the axis of the kernel that tp splits."""
        shape = (num_inputs, num_outputs)
        is_split = shape[splits] % self._tp == 0
        axes = tuple("tp" if is_split and axis == splits else None for axis in range(2))
        kernel = self._weight(f"{name}.weight", shape, axes, is_transposed=True)
        if not has_bias:
            return [kernel]
        return [kernel, self._weight(f"{name}.bias", (num_outputs,), axes[1:])]

    def _norm_weights(self, name: str) -> list[Weight]:
        return [self._plain(f"{name}.{kind}", (self._facts.hidden_size,)) for kind in ("weight", "bias")]

    def _plain(self, name: str, shape: tuple[int, ...]) -> Weight:
        return self._weight(name, shape, (None,) * len(shape))

    def _weight(
        self, name: str, shape: tuple[int, ...], axes: PartitionAxes, *, is_transposed: bool = False
    ) -> Weight:
        return Weight(
            name=name,
            shape=shape,
            dtype=self._dtype,
            axes=axes,
            parts=(Part(name, is_transposed=is_transposed),),
        )


def _linear(named: Named, name: str, hidden: jax.Array) -> jax.Array:
    result = hidden @ named[f"{name}.weight"]
    bias = named.get(f"{name}.bias")
    return result if bias is None else result + bias


def _norm(hidden: jax.Array, named: Named, name: str, epsilon: float) -> jax.Array:
    """Normalise in float32, as torch does for every dtype."""
    wide = hidden.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    weight, bias = (named[f"{name}.{kind}"].astype(jnp.float32) for kind in ("weight", "bias"))
    return (normal * weight + bias).astype(hidden.dtype)


def _activate(inner: jax.Array, name: str) -> jax.Array:
    if name == "quick_gelu":
        return inner * jax.nn.sigmoid(1.702 * inner)
    return jax.nn.gelu(inner, approximate=name != "gelu")
