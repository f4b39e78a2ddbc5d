"""GLM-4: a norm before and after each half of a block, half of each head rotated in adjacent pairs.

Source: transformers 5.5, `models/glm4/configuration_glm4.py` and `modeling_glm4.py`.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.reading import (
    SILU,
    decoder_shapes,
    read_activation,
    read_facts,
    read_heads,
    read_hidden_size,
    read_intermediate_size,
    size_keys,
)
from vinfer.checkpoint.family import ONE_ROPE, Family, NormalisedConfig
from vinfer.checkpoint.layout import linear_shapes, norm_shapes
from vinfer.checkpoint.rope.config import read_rope

NORMS = (
    "input_layernorm",
    "post_self_attn_layernorm",
    "post_attention_layernorm",
    "post_mlp_layernorm",
)


def _glm4(keys: ConfigKeys) -> NormalisedConfig:
    heads = read_heads(keys, default_head_dim=128, default_kv_heads=2)
    hidden, inner = read_hidden_size(keys), read_intermediate_size(keys)
    facts = read_facts(keys, heads)
    has_bias = keys.boolean("attention_bias", True)
    config: dict[str, object] = {
        **size_keys(facts, inner=inner),
        "hidden_act": read_activation(keys, SILU, default="silu"),
        "rms_norm_eps": keys.number("rms_norm_eps", 1.5625e-7),
        "attention_bias": has_bias,
        "attention_dropout": 0.0,
    }
    layer = {
        **heads.attention_shapes(hidden, has_bias=has_bias, has_output_bias=False),
        **linear_shapes("mlp.gate_up_proj", 2 * inner, hidden),
        **linear_shapes("mlp.down_proj", hidden, inner),
        **norm_shapes(NORMS, hidden),
    }
    return NormalisedConfig(
        model_type="glm4",
        config=config,
        ropes={
            ONE_ROPE: read_rope(
                keys,
                head_dim=heads.head_dim,
                # A null value is not the default: it means whole heads.
                default_partial_rotary_factor=1.0 if "partial_rotary_factor" in keys.values else 0.5,
            )
        },
        facts=facts,
        shapes=decoder_shapes(facts, layer),
    )


FAMILIES = (
    Family(
        model_type="glm4",
        architecture="Glm4ForCausalLM",
        translate=_glm4,
    ),
)
