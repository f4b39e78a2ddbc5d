"""Gemma 2 and Gemma 3 (text): norms around each block scale by 1 + weight, windows alternate.

Source: transformers 5.5, `models/{gemma2,gemma3}/configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.llama import HEAD_NORMS
from vinfer.checkpoint.families.reading import (
    decoder_shapes,
    every_nth_is_full,
    read_activation,
    read_facts,
    read_heads,
    read_hidden_size,
    read_intermediate_size,
    read_layer_types,
    read_num_layers,
    read_windows,
    size_keys,
)
from vinfer.checkpoint.family import ONE_ROPE, Family, NormalisedConfig
from vinfer.checkpoint.layout import gated_mlp_shapes, norm_shapes
from vinfer.checkpoint.rope.config import LayerRope, read_rope, read_ropes_by_layer_type
from vinfer.checkpoint.rope.facts import RopeFacts

_GELU = {"gelu_pytorch_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "gelu_new": "gelu_new"}
_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
_GEMMA3_ROPES = {
    "full_attention": LayerRope(theta=1_000_000.0, theta_key="rope_theta", takes_rope_scaling=True),
    "sliding_attention": LayerRope(theta=10_000.0, theta_key="rope_local_base_freq"),
}


def _gemma2(keys: ConfigKeys) -> NormalisedConfig:
    return _decoder(
        keys,
        "gemma2",
        ropes={ONE_ROPE: read_rope(keys, head_dim=_head_dim(keys))},
        full_every=2,
        caps={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        has_head_norms=False,
    )


def _gemma3(keys: ConfigKeys) -> NormalisedConfig:
    if keys.has("attn_logit_softcapping"):
        raise keys.refusal("attn_logit_softcapping", "transformers' Gemma 3 ignores it: remove it")
    pattern = keys.integer("sliding_window_pattern", 6)
    return _decoder(
        keys,
        "gemma3_text",
        ropes=read_ropes_by_layer_type(keys, head_dim=_head_dim(keys), defaults=_GEMMA3_ROPES),
        full_every=pattern,
        caps={"final_logit_softcapping": None},
        has_head_norms=True,
    )


def _head_dim(keys: ConfigKeys) -> int:
    return read_heads(keys, default_head_dim=256, default_kv_heads=4).head_dim


def _decoder(
    keys: ConfigKeys,
    model_type: str,
    *,
    ropes: dict[str, RopeFacts],
    full_every: int,
    caps: dict[str, float | None],
    has_head_norms: bool,
) -> NormalisedConfig:
    """Translate a config of either generation.

    Args:
        full_every: without `layer_types`, every `full_every`-th layer sees everything, the others a window.
        caps: soft-caps and their defaults where the key is absent; a null key means no cap.
    """
    if keys.has("use_bidirectional_attention") and keys.boolean("use_bidirectional_attention"):
        raise keys.refusal("use_bidirectional_attention", "only causal attention is supported")
    heads = read_heads(keys, default_head_dim=256, default_kv_heads=4)
    hidden, inner = read_hidden_size(keys), read_intermediate_size(keys)
    num_layers = read_num_layers(keys)
    layer_types = read_layer_types(
        keys,
        num_layers,
        every_nth_is_full(num_layers, full_every),
    )
    facts = read_facts(keys, heads, windows=read_windows(keys, layer_types, 4096), is_tied=True)
    attention_bias = keys.boolean("attention_bias", False)
    config: dict[str, object] = {
        **size_keys(facts, inner=inner),
        "hidden_activation": read_activation(
            keys, _GELU, key="hidden_activation", default="gelu_pytorch_tanh"
        ),
        "rms_norm_eps": keys.number("rms_norm_eps", 1e-6),
        "attention_bias": attention_bias,
        "query_pre_attn_scalar": keys.number("query_pre_attn_scalar", 256.0),
        # EasyDeL's Gemma 3 picks the rotary table of a layer by its type.
        "layer_types": list(layer_types),
        **{
            key: keys.number(key) if keys.has(key) else None if key in keys.values else default
            for key, default in caps.items()
        },
    }
    layer = {
        **heads.attention_shapes(hidden, has_bias=attention_bias),
        **gated_mlp_shapes("mlp", hidden=hidden, inner=inner),
        **norm_shapes(_NORMS, hidden),
    }
    if has_head_norms:
        layer |= norm_shapes(HEAD_NORMS, heads.head_dim)
    return NormalisedConfig(
        model_type=model_type,
        config=config,
        ropes=ropes,
        facts=facts,
        shapes=decoder_shapes(facts, layer),
    )


# transformers reads hidden_activation, not hidden_act.
_HARMLESS = frozenset({"cache_implementation", "hidden_act"})

FAMILIES = (
    Family(
        model_type="gemma2",
        architecture="Gemma2ForCausalLM",
        translate=_gemma2,
        # Gemma 2 9B and 27B also state the window here; transformers reads `sliding_window`.
        harmless=_HARMLESS | {"sliding_window_size"},
    ),
    Family(
        model_type="gemma3_text",
        architecture="Gemma3ForCausalLM",
        translate=_gemma3,
        # Written next to layer_types by transformers 4, never read from a file.
        harmless=_HARMLESS | {"_sliding_window_pattern"},
    ),
)
