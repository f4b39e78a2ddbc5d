"""Llama, Qwen2 and Qwen3: RMS norms before each block, a gated feed-forward, one rotary table.

Source: transformers 5.5, `models/{llama,qwen2,qwen3}/configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.reading import (
    FULL,
    SILU,
    SLIDING,
    Heads,
    decoder_shapes,
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
from vinfer.checkpoint.layout import Shapes, gated_mlp_shapes, norm_shapes
from vinfer.checkpoint.rope.config import read_rope
from vinfer.checkpoint.rope.facts import RopeFacts

NORMS = ("input_layernorm", "post_attention_layernorm")
HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


def _llama(keys: ConfigKeys) -> NormalisedConfig:
    attention_bias = keys.boolean("attention_bias", False)
    return gated_decoder(
        keys,
        "llama",
        read_heads(keys),
        windows=(None,) * read_num_layers(keys),
        has_bias=attention_bias,
        has_mlp_bias=keys.boolean("mlp_bias", False),
    )


def _qwen2(keys: ConfigKeys) -> NormalisedConfig:
    heads = read_heads(keys, must_state_kv_heads=True)
    hidden_size = read_hidden_size(keys)
    if heads.num_queries != hidden_size:
        raise keys.refusal(
            "head_dim",
            "EasyDeL's qwen2 always uses hidden_size / num_attention_heads = "
            f"{hidden_size // heads.num_attention_heads}",
        )
    # Not configurable in this family: q, k and v projections always have a bias, o_proj never does.
    return gated_decoder(
        keys, "qwen2", heads, windows=qwen_windows(keys), has_bias=True, has_output_bias=False
    )


def _qwen3(keys: ConfigKeys) -> NormalisedConfig:
    attention_bias = keys.boolean("attention_bias", False)
    return gated_decoder(
        keys,
        "qwen3",
        read_heads(keys, default_head_dim=128, must_state_kv_heads=True),
        windows=qwen_windows(keys),
        has_bias=attention_bias,
        has_head_norms=True,
    )


def qwen_windows(keys: ConfigKeys) -> tuple[int | None, ...]:
    """Return each layer's window: with `use_sliding_window`, layers from `max_window_layers` on slide.

    A null window means none, whatever `use_sliding_window` says.
    """
    num_layers = read_num_layers(keys)
    is_null = "sliding_window" in keys.values and not keys.has("sliding_window")
    is_sliding = keys.boolean("use_sliding_window", False) and not is_null
    first = keys.integer("max_window_layers", 28, minimum=0)
    defaults = [SLIDING if is_sliding and layer >= first else FULL for layer in range(num_layers)]
    layer_types = read_layer_types(keys, num_layers, defaults)
    if not is_sliding and SLIDING in layer_types:
        raise keys.refusal("layer_types", "has sliding_attention, but windows are off: correct one of them")
    return read_windows(keys, layer_types, 4096)


def gated_decoder(
    keys: ConfigKeys,
    model_type: str,
    heads: Heads,
    *,
    windows: tuple[int | None, ...],
    has_bias: bool,
    has_output_bias: bool | None = None,
    has_mlp_bias: bool = False,
    has_head_norms: bool = False,
    rope: RopeFacts | None = None,
    layer: Shapes | None = None,
) -> NormalisedConfig:
    """Translate a decoder like Llama's, except for biases, windows and norms on each head's q and k.

    Args:
        has_output_bias: None if it is that of q, k and v.
        rope: for a family that does not read it as Llama does.
        layer: the tensors of a layer, for a family that has others.
    """
    hidden, inner = read_hidden_size(keys), read_intermediate_size(keys)
    facts = read_facts(keys, heads, windows=windows)
    config: dict[str, object] = {
        **size_keys(facts, inner=inner),
        "hidden_act": read_activation(keys, SILU, default="silu"),
        "rms_norm_eps": keys.number("rms_norm_eps", 1e-6),
        "attention_bias": has_bias,
        "mlp_bias": has_mlp_bias,
        # EasyDeL's Qwen configs slide from layer 28 on by default.
        "layer_types": [FULL] * facts.num_layers,
        "sliding_window": None,
        "use_sliding_window": False,
    }
    if layer is None:
        layer = {
            **heads.attention_shapes(hidden, has_bias=has_bias, has_output_bias=has_output_bias),
            **gated_mlp_shapes("mlp", hidden=hidden, inner=inner, has_bias=has_mlp_bias),
            **norm_shapes(NORMS, hidden),
            **(norm_shapes(HEAD_NORMS, heads.head_dim) if has_head_norms else {}),
        }
    return NormalisedConfig(
        model_type=model_type,
        config=config,
        ropes={ONE_ROPE: rope or read_rope(keys, head_dim=heads.head_dim)},
        facts=facts,
        shapes=decoder_shapes(facts, layer),
    )


QWEN_HARMLESS = frozenset({"dual_chunk_attention_config"})
"""In Qwen's million-token models: how other servers attend beyond 262144; transformers ignores it."""

FAMILIES = (
    Family(
        model_type="llama",
        architecture="LlamaForCausalLM",
        translate=_llama,
        # Old files have it; transformers' Llama does not read it.
        harmless=frozenset({"max_window_layers"}),
    ),
    Family(
        model_type="qwen2",
        architecture="Qwen2ForCausalLM",
        translate=_qwen2,
        harmless=QWEN_HARMLESS,
    ),
    Family(
        model_type="qwen3",
        architecture="Qwen3ForCausalLM",
        translate=_qwen3,
        harmless=QWEN_HARMLESS,
    ),
)
