"""OLMo 2 and 3: RMS norms after each block, and over the whole of q and k.

Source: transformers 5.5, `models/{olmo2,olmo3}/configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

import dataclasses

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.llama import gated_decoder
from vinfer.checkpoint.families.reading import (
    Heads,
    every_nth_is_full,
    read_heads,
    read_hidden_size,
    read_intermediate_size,
    read_layer_types,
    read_num_layers,
    read_windows,
)
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.layout import gated_mlp_shapes, norm_shapes
from vinfer.checkpoint.rope.facts import RopeFacts

NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


def _olmo2(keys: ConfigKeys) -> NormalisedConfig:
    return _olmo(keys, "olmo2", read_heads(keys), windows=(None,) * read_num_layers(keys))


def _olmo3(keys: ConfigKeys) -> NormalisedConfig:
    heads = read_heads(keys)
    hidden_size, num_layers = read_hidden_size(keys), read_num_layers(keys)
    if heads.num_queries != hidden_size:
        raise keys.refusal(
            "head_dim",
            "EasyDeL's olmo3 always uses hidden_size / num_attention_heads = "
            f"{hidden_size // heads.num_attention_heads}",
        )
    layer_types = read_layer_types(keys, num_layers, every_nth_is_full(num_layers, 4))
    normalised = _olmo(keys, "olmo3", heads, windows=read_windows(keys, layer_types, 4096))
    (rope,) = normalised.ropes.values()
    return dataclasses.replace(
        normalised,
        config={**normalised.config, "layer_types": list(layer_types)},
        ropes={"full_attention": rope, "sliding_attention": _unscaled(rope)},
    )


def _unscaled(rope: RopeFacts) -> RopeFacts:
    """Return the rotary table of the sliding layers, which context extension does not affect.

    OLMo 3's models were trained this way (arXiv 2512.13961), and transformers 4.57 computes them this way.
    transformers 5.5 scales these layers too, though a comment in its `modular_olmo3.py` says otherwise:
    an oversight in a refactoring (its pull request 45945).
    """
    return RopeFacts(theta=rope.theta, rotary_dim=rope.rotary_dim)


def _olmo(
    keys: ConfigKeys, model_type: str, heads: Heads, *, windows: tuple[int | None, ...]
) -> NormalisedConfig:
    attention_bias = keys.boolean("attention_bias", False)
    hidden = read_hidden_size(keys)
    return gated_decoder(
        keys.with_defaults(rms_norm_eps=1e-5),
        model_type,
        heads,
        windows=windows,
        has_bias=attention_bias,
        layer={
            **heads.attention_shapes(hidden, has_bias=attention_bias),
            **norm_shapes(("self_attn.q_norm",), heads.num_queries),
            **norm_shapes(("self_attn.k_norm",), heads.num_keys),
            **gated_mlp_shapes("mlp", hidden=hidden, inner=read_intermediate_size(keys)),
            **norm_shapes(NORMS, hidden),
        },
    )


FAMILIES = (
    Family(
        model_type="olmo2",
        architecture="Olmo2ForCausalLM",
        translate=_olmo2,
    ),
    Family(
        model_type="olmo3",
        architecture="Olmo3ForCausalLM",
        translate=_olmo3,
    ),
)
