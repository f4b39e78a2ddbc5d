"""Measures EasyDeL's StableLM, GLM-4, GPT-2 and GPT-NeoX without corrections; needs EasyDeL imported."""

from __future__ import annotations

import importlib
from typing import Any

HIDDEN, HEADS, HEAD_DIM = 64, 4, 16


def facts_of_its_attentions() -> dict[str, Any]:
    """Return the facts that `test_easydel_facts` checks for each family's `correct`."""
    import jax.numpy as jnp

    sizes = {
        "vocab_size": 32,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
    }
    stablelm = _module(
        "stablelm",
        "StableLmConfig",
        "StableLmForCausalLM",
        {**sizes, "num_key_value_heads": 2, "use_qkv_bias": True, "partial_rotary_factor": 0.5},
    ).model.layers[0]
    glm4 = _module(
        "glm4",
        "Glm4Config",
        "Glm4ForCausalLM",
        {**sizes, "num_key_value_heads": 2, "head_dim": HEAD_DIM, "attention_bias": True},
    ).model.layers[0]
    neox = _module("gpt_neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", sizes).gpt_neox.layers[0]
    gpt2 = _module(
        "gpt2",
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "n_embd": HIDDEN,
            "n_head": HEADS,
            "n_layer": 2,
            "n_positions": 64,
            "vocab_size": 32,
            "scale_attn_by_inverse_layer_idx": True,
            "resid_pdrop": 0.0,
        },
    ).transformer.h[1]
    c_attn = gpt2.attn.c_attn
    gpt2.attn.c_attn = lambda hidden: jnp.concatenate([hidden] * 3, axis=-1)
    return {
        "stablelm_rotary_dim": stablelm.self_attn.rotary.rotary_dim,
        "stablelm_query_bias": stablelm.self_attn.q_proj.bias is not None,
        "stablelm_causal": _causal_in_spite_of_the_mark(stablelm.self_attn),
        "stablelm_norms_used": _norms_used(),
        "glm4_rotates_halves": glm4.self_attn.rotary.is_neox_style,
        "glm4_output_bias": glm4.self_attn.o_proj.bias is not None,
        "gpt_neox_takes_heads_in_turn": neox.attention.use_gqa,
        "gpt2_bias": list(c_attn.bias.value.shape),
        "gpt2_causal": _causal_in_spite_of_the_mark(gpt2.attn),
        "gpt2_scale_of_layer_1": gpt2.attn.attention_performer.softmax_scale,
    }


def _module(family: str, config_class: str, model_class: str, config: dict[str, Any]) -> Any:
    import jax.numpy as jnp
    from flax import nnx

    package = importlib.import_module(f"easydel.modules.{family}")
    built = getattr(package, config_class)(**config)
    built.add_basic_configurations(sharding_axis_dims=(1, 1, 1, 1, 1), attn_mechanism="vanilla")
    return getattr(package, model_class)(
        config=built, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )


def _causal_in_spite_of_the_mark(attention: Any) -> bool:
    """Return whether it requests a causal mask although the mask is already marked causal."""
    import jax.numpy as jnp
    from ejkernel.types import MaskInfo

    mask_info = MaskInfo.from_attention_mask(jnp.ones((1, 1, 2, 2), bool))
    object.__setattr__(mask_info, "_causal_baked", True)
    performer = type(attention.attention_performer)
    forward, asked = performer.forward, []

    def record(self: Any, *, causal: bool, **arguments: Any) -> Any:
        asked.append(causal)
        return forward(self, causal=causal, **arguments)

    performer.forward = record
    try:
        with attention.config.mesh:
            attention(jnp.ones((1, 2, HIDDEN)), mask_info, jnp.arange(2)[None], "prefill")
    finally:
        performer.forward = forward
    return bool(asked[0])


def _norms_used() -> int:
    """Count the norms that StableLM's norm per head applies."""
    import jax.numpy as jnp
    from easydel.modules.stablelm.modeling_stablelm import StableLmLayerNormPerHead
    from flax import nnx

    norms = StableLmLayerNormPerHead(
        HEAD_DIM, HEADS, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    for head, norm in enumerate(norms.norms):
        norm.scale.value = jnp.full(HEAD_DIM, 1.0 + head)
    states = jnp.broadcast_to(jnp.arange(HEAD_DIM, dtype=jnp.float32), (1, HEADS, 1, HEAD_DIM))
    return len({float(scaled[0].max()) for scaled in norms(states)[0]})
