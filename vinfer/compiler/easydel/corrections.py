"""Corrects on the built module what EasyDeL 0.3.0 gets wrong in single families.

Each correction stands next to the fact that makes it necessary. It works by class or static attribute,
because only those survive `split_module` and `merge_module`. `families.py` lists each family's corrections.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def drop_output_bias(attention: Any) -> None:
    """Remove the bias of o_proj: `UnifiedAttention._create_o_proj` adds one if q, k and v have one."""
    attention.o_proj.use_bias = False
    attention.o_proj.bias = None


def correct_cohere2(module: Any) -> None:
    """Rotate by layer type, and use the embedding as the head if tied.

    `cohere2/modeling_cohere2.py`:

    - `Cohere2Attention._apply_rotary` rotates only if `self.sliding_window` is set, and ours never is.
    - `Cohere2ForCausalLM.apply_lm_head` multiplies by `lm_head` even if the head is the embedding.
    """
    from easydel.layers.attention import UnifiedAttention
    from easydel.modules._base import BaseCausalLMModule
    from easydel.modules.cohere2.modeling_cohere2 import Cohere2Attention, Cohere2ForCausalLM

    class SlidingAttention(Cohere2Attention):  # type: ignore[misc]
        _apply_rotary = UnifiedAttention._apply_rotary

    class FullAttention(Cohere2Attention):  # type: ignore[misc]
        def _apply_rotary(self, query: Any, key: Any, positions: Any, frequencies: Any) -> tuple[Any, Any]:
            return query, key

    class CausalLM(Cohere2ForCausalLM):  # type: ignore[misc]
        def apply_lm_head(self, hidden_states: Any) -> Any:
            return BaseCausalLMModule.apply_lm_head(self, hidden_states) * self.logit_scale

    module.__class__ = CausalLM
    for layer, layer_type in zip(module.model.layers, module.config.layer_types, strict=True):
        is_full = layer_type == "full_attention"
        layer.self_attn.__class__ = FullAttention if is_full else SlidingAttention


def cap_attention_logits(module: Any) -> None:
    """Soft-cap attention scores at `attn_logit_softcapping`, as transformers does.

    EasyDeL's config has the key, and the kernel accepts it, but nothing passes it on:
    `layers/attention/_unified.py::UnifiedAttention.forward` calls the performer without `logits_soft_cap`.
    """
    for layer in module.model.layers:
        layer.self_attn.attention_performer.logits_soft_cap = module.config.attn_logit_softcapping


def scaled_embeddings(decoder: Any, tokens: Any) -> Any:
    """Embed tokens as `Gemma3TextScaledWordEmbedding` of transformers does, without scaling image features.

    `modules/gemma3/modeling_gemma3.py::Gemma3TextModel.forward` scales the embeddings that it looks up,
    and uses `inputs_embeds` unscaled.
    """
    return decoder.embed_tokens(tokens) * decoder.config.hidden_size**0.5


def correct_glm4(module: Any) -> None:
    """Rotate adjacent pairs, and remove the bias of o_proj.

    - `Glm4Attention` uses the usual rotary module, which pairs the two halves of a head; transformers' GLM-4
      pairs dimensions 0 and 1, 2 and 3, and so on (`rotate_half` in modeling_glm4.py).
    - See `drop_output_bias`.
    """
    for layer in module.model.layers:
        layer.self_attn.rotary.is_neox_style = False
        drop_output_bias(layer.self_attn)


def correct_gpt_neox(module: Any) -> None:
    """Split the fused projection as it is stored: query, key and value of head 0, then of head 1, and so on.

    `UnifiedAttention.forward` splits it into all queries, all keys and all values. Its path for grouped
    heads splits by head; with as many key heads as query heads, that is this layout.
    """
    for layer in module.gpt_neox.layers:
        layer.attention.use_gqa = True


def correct_gpt2(module: Any) -> None:
    """Use EasyDeL's general attention and its general linear layers.

    - `Conv1D` (modeling_gpt2.py) makes a bias as long as its input, so the sum has mismatched shapes.
    - `GPT2Attention.__call__` applies a second causal mask that counts a chunk's rows from 0, even if the
      given mask is marked causal. `UnifiedAttention.__call__` does not.
    - `GPT2Attention._create_attention_performer` has one scale and reads neither `scale_attn_weights` nor
      `scale_attn_by_inverse_layer_idx`.
    """
    config = module.config
    for index, layer in enumerate(module.transformer.h):
        attention, mlp = layer.attn, layer.mlp
        attention.c_attn = _linear(attention.c_attn)
        attention.c_proj = _linear(attention.c_proj)
        mlp.c_fc, mlp.c_proj = _linear(mlp.c_fc), _linear(mlp.c_proj)
        attention.__class__ = _gpt2_attention()
        scale = float(attention.head_dim) ** -0.5 if config.scale_attn_weights else 1.0
        attention.attention_performer.softmax_scale = (
            scale / (index + 1) if config.scale_attn_by_inverse_layer_idx else scale
        )


@functools.cache
def _gpt2_attention() -> type[Any]:
    from easydel.layers.attention import UnifiedAttention
    from easydel.modules.gpt2.modeling_gpt2 import GPT2Attention

    names = {"query_key_value_projection": "c_attn", "output_projection": "c_proj"}
    members = {"__call__": UnifiedAttention.__call__, "projection_mapping": names}
    return type("GPT2Attention", (GPT2Attention,), members)


def _linear(conv: Any) -> Any:
    """Build a linear layer without values, with the sizes of a Conv1D, whose kernel is [out, in]."""
    from easydel.layers import ColumnParallelLinear, RowParallelLinear
    from flax import nnx

    num_outputs, num_inputs = conv.kernel.value.shape
    linear = RowParallelLinear if conv.sharding_axis == "row" else ColumnParallelLinear

    def make() -> Any:
        return linear(
            num_inputs,
            num_outputs,
            dtype=conv.dtype,
            param_dtype=conv.param_dtype,
            precision=conv.precision,
            rngs=nnx.Rngs(0),
        )

    return nnx.eval_shape(make)


def give_each_norm_its_size(module: Any) -> None:
    """Swap OLMo 2's norms of q and k, and use the dtype of the other weights for them.

    `olmo2/modeling_olmo2.py`: `_create_q_norm` uses the size of k and `_create_k_norm` that of q, so no
    checkpoint with fewer k heads fits. Neither passes `param_dtype` on, and the default is bfloat16.
    """
    from easydel.layers import RMSNorm
    from flax import nnx

    for layer in module.model.layers:
        attention = layer.self_attn
        for name, num_heads in (("q_norm", attention.num_heads), ("k_norm", attention.num_key_value_heads)):
            norm = RMSNorm(
                num_heads * attention.head_dim,
                eps=module.config.rms_norm_eps,
                dtype=module.dtype,
                param_dtype=module.param_dtype,
                rngs=nnx.Rngs(0),
            )
            setattr(attention, name, norm)


def rotate_by_layer_type(module: Any) -> None:
    """Use a separate rotary table for OLMo 3's sliding layers: see `families/olmo.py`.

    `olmo3/modeling_olmo3.py`: `Olmo3Model.__call__` passes one table to every layer.
    """
    from easydel.modules.olmo3.modeling_olmo3 import Olmo3Attention, Olmo3Model

    class Decoder(Olmo3Model):  # type: ignore[misc]
        @property
        def frequencies(self) -> dict[str, Any]:
            return {name: self.__dict__[f"{name}_frequencies"] for name in OLMO3_ROPES}

    class Attention(Olmo3Attention):  # type: ignore[misc]
        def _apply_rotary(self, query: Any, key: Any, positions: Any, frequencies: Any) -> Any:
            return super()._apply_rotary(query, key, positions, frequencies[self.attention_type_name])

    module.model.__class__ = Decoder
    for layer in module.model.layers:
        layer.self_attn.__class__ = Attention


OLMO3_ROPES = ("full_attention", "sliding_attention")


def correct_stablelm(module: Any) -> None:
    """Use EasyDeL's general attention with a separate norm for every head.

    - `StableLmAttention.__call__` applies a second causal mask that counts a chunk's rows from 0, even if
      the given mask is marked causal. `UnifiedAttention.__call__` does not.
    - `StableLmLayerNormPerHead.__call__` splits into one piece instead of one per head (`jnp.split(x, 1)`;
      torch's split takes the size of pieces), so all heads get the first head's norm.
    - See `drop_output_bias`.
    """
    for layer in module.model.layers:
        layer.self_attn.__class__ = _stablelm_attention()
        drop_output_bias(layer.self_attn)


@functools.cache
def _stablelm_attention() -> type[Any]:
    from easydel.layers.attention import UnifiedAttention
    from easydel.modules.stablelm.modeling_stablelm import StableLmAttention

    methods = {"__call__": UnifiedAttention.__call__, "_postprocess_qkv": _normalise_heads}
    return type("StableLmAttention", (StableLmAttention,), methods)


def _normalise_heads(
    attention: Any, queries: jax.Array, keys: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalize queries and keys [rows, length, heads, head_dim], if the model does."""
    if attention.qk_layernorm:
        queries = _layer_norm(queries, attention.q_layernorm.norms)
        keys = _layer_norm(keys, attention.k_layernorm.norms)
    return queries, keys, values


def _layer_norm(states: jax.Array, norms: Any) -> jax.Array:
    scales = jnp.stack([norm.scale[...] for norm in norms]).astype(jnp.float32)
    centred = states.astype(jnp.float32)
    centred -= centred.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + norms[0].epsilon) * scales).astype(states.dtype)
