"""StableLM: layer norms, a quarter of each head rotated, optionally a norm per head and a parallel block.

Source: transformers 5.5, `models/stablelm/configuration_stablelm.py` and `modeling_stablelm.py`.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.reading import (
    SILU,
    Heads,
    decoder_shapes,
    read_activation,
    read_facts,
    read_heads,
    read_hidden_size,
    read_intermediate_size,
    refuse_other_than,
    size_keys,
)
from vinfer.checkpoint.family import ONE_ROPE, Family, NormalisedConfig
from vinfer.checkpoint.layout import Shape, gated_mlp_shapes, norm_shapes
from vinfer.checkpoint.rope.config import read_rope


def _stablelm(keys: ConfigKeys) -> NormalisedConfig:
    # Without the key, transformers assumes 32, whatever num_attention_heads is.
    heads = read_heads(keys, must_state_kv_heads=True)
    hidden, inner = read_hidden_size(keys), read_intermediate_size(keys)
    if heads.num_queries != hidden:
        raise keys.refusal(
            "head_dim",
            "this family's heads have hidden_size / num_attention_heads dimensions: remove the key",
        )
    facts = read_facts(keys, heads)
    rope = read_rope(keys, head_dim=heads.head_dim, default_partial_rotary_factor=0.25)
    epsilon = keys.number("layer_norm_eps", 1e-5)
    # Names that predate the family's support in transformers, which reads none of them.
    old_names: dict[str, object] = {
        "norm_eps": epsilon,
        "num_heads": heads.num_attention_heads,
        "rope_pct": rope.rotary_dim / heads.head_dim,
        "rotary_scaling_factor": 1.0,
    }
    refuse_other_than(keys, old_names)
    has_bias = keys.boolean("use_qkv_bias", False)
    has_head_norms = keys.boolean("qk_layernorm", False)
    is_parallel = keys.boolean("use_parallel_residual", False)
    config: dict[str, object] = {
        **size_keys(facts, inner=inner),
        "hidden_act": read_activation(keys, SILU, default="silu"),
        "layer_norm_eps": epsilon,
        # EasyDeL stores use_qkv_bias, but its projections read attention_bias.
        "attention_bias": has_bias,
        "qk_layernorm": has_head_norms,
        "use_parallel_residual": is_parallel,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    layer = {
        **heads.attention_shapes(hidden, has_bias=has_bias, has_output_bias=False),
        **gated_mlp_shapes("mlp", hidden=hidden, inner=inner),
    }
    # In a parallel block, both halves read the first norm.
    norms = ("input_layernorm",) if is_parallel else ("input_layernorm", "post_attention_layernorm")
    layer |= norm_shapes(norms, hidden, has_bias=True)
    if has_head_norms:
        layer |= _head_norm_shapes(heads)
    return NormalisedConfig(
        model_type="stablelm",
        config=config,
        ropes={ONE_ROPE: rope},
        facts=facts,
        shapes={**decoder_shapes(facts, layer), "model.norm.bias": (hidden,)},
    )


def _head_norm_shapes(heads: Heads) -> dict[str, Shape]:
    queries = [f"self_attn.q_layernorm.norms.{head}" for head in range(heads.num_attention_heads)]
    keys = [f"self_attn.k_layernorm.norms.{head}" for head in range(heads.num_key_value_heads)]
    return norm_shapes([*queries, *keys], heads.head_dim)


FAMILIES = (
    Family(
        model_type="stablelm",
        architecture="StableLmForCausalLM",
        translate=_stablelm,
        harmless=frozenset({"hidden_dropout"}),
    ),
)
