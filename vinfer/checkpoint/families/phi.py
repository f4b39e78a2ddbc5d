"""Phi-3, Phi-3.5 and Phi-4: Llama with fused projections; heads may rotate in part, over long contexts.

Source: transformers 5.5, `models/phi3/configuration_phi3.py` and `modeling_phi3.py`.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.llama import NORMS, gated_decoder
from vinfer.checkpoint.families.reading import (
    read_heads,
    read_hidden_size,
    read_intermediate_size,
    read_num_layers,
    refuse_other_than,
)
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.layout import linear_shapes, norm_shapes
from vinfer.checkpoint.rope.config import read_rope

# Published files state these; transformers ignores them and always computes this design.
_DESIGN: dict[str, object] = {
    "attention_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
}


def _phi3(keys: ConfigKeys) -> NormalisedConfig:
    refuse_other_than(keys, _DESIGN)
    keys = keys.with_defaults(rms_norm_eps=1e-5)
    heads = read_heads(keys)
    window = keys.integer("sliding_window") if keys.has("sliding_window") else None
    rope = read_rope(
        keys,
        head_dim=heads.head_dim,
        default_partial_rotary_factor=1.0,
        default_original_length=4096,
        renamed_types={"yarn": "longrope"},
    )
    if rope.rope_type not in ("default", "longrope"):
        raise keys.refusal("rope_parameters", f"is {rope.rope_type}; supported for phi3: default, longrope")
    hidden, inner = read_hidden_size(keys), read_intermediate_size(keys)
    return gated_decoder(
        keys,
        "phi3",
        heads,
        windows=(window,) * read_num_layers(keys),
        has_bias=False,
        rope=rope,
        layer={
            **linear_shapes("self_attn.qkv_proj", heads.num_queries + 2 * heads.num_keys, hidden),
            **linear_shapes("self_attn.o_proj", hidden, heads.num_queries),
            **linear_shapes("mlp.gate_up_proj", 2 * inner, hidden),
            **linear_shapes("mlp.down_proj", hidden, inner),
            **norm_shapes(NORMS, hidden),
        },
    )


FAMILIES = (
    Family(
        model_type="phi3",
        architecture="Phi3ForCausalLM",
        translate=_phi3,
        # Dropout.
        harmless=frozenset({"embd_pdrop", "resid_pdrop"}),
    ),
)
