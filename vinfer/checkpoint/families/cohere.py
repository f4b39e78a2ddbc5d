"""Cohere 2 (Command R7B, Command A): one LayerNorm before two parallel blocks, scaled logits.

Its sliding layers rotate adjacent dimensions of a head; its full layers do not rotate.

Source: transformers 5.5, `models/cohere2/configuration_cohere2.py` and `modeling_cohere2.py`.
"""

from __future__ import annotations

import dataclasses

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.llama import gated_decoder
from vinfer.checkpoint.families.reading import (
    every_nth_is_full,
    read_heads,
    read_hidden_size,
    read_intermediate_size,
    read_layer_types,
    read_num_layers,
    read_windows,
    refuse_other_than,
)
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.layout import gated_mlp_shapes, norm_shapes

# Published files state these; transformers ignores them and always computes this design.
_DESIGN: dict[str, object] = {
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_qk_norm": False,
}


def _cohere2(keys: ConfigKeys) -> NormalisedConfig:
    refuse_other_than(keys, _DESIGN)
    keys = keys.with_defaults(tie_word_embeddings=True)
    heads = read_heads(keys)
    attention_bias = keys.boolean("attention_bias", False)
    layer_types = _layer_types(keys)
    hidden = read_hidden_size(keys)
    normalised = gated_decoder(
        keys,
        "cohere2",
        heads,
        windows=read_windows(keys, layer_types, 4096),
        has_bias=attention_bias,
        layer={
            **heads.attention_shapes(hidden, has_bias=attention_bias),
            **gated_mlp_shapes("mlp", hidden=hidden, inner=read_intermediate_size(keys)),
            **norm_shapes(("input_layernorm",), hidden),
        },
    )
    return dataclasses.replace(
        normalised,
        config={
            **normalised.config,
            "layer_norm_eps": keys.number("layer_norm_eps", 1e-5),
            "logit_scale": keys.number("logit_scale", 0.0625),
            # Which layers rotate; vinfer applies the windows itself.
            "layer_types": list(layer_types),
        },
    )


def _layer_types(keys: ConfigKeys) -> tuple[str, ...]:
    """Return `layer_types`, or full_attention for every `sliding_window_pattern`-th layer if it is absent."""
    num_layers = read_num_layers(keys)
    pattern = keys.integer("sliding_window_pattern", 4)
    return read_layer_types(keys, num_layers, every_nth_is_full(num_layers, pattern))


FAMILIES = (
    Family(
        model_type="cohere2",
        architecture="Cohere2ForCausalLM",
        translate=_cohere2,
        harmless=frozenset(
            {
                # Written next to layer_types by transformers 4, never read from a file.
                "_sliding_window_pattern",
                "cache_implementation",
                # The same as sliding_window_pattern in Cohere's own terms.
                "layer_switch",
                # Only for Cohere's own training code; transformers reads tie_word_embeddings instead.
                "use_embedding_sharing",
                "use_parallel_embedding",
            }
        ),
    ),
)
