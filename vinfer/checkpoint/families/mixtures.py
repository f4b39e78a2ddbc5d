"""Mixtral, Qwen3-MoE and gpt-oss: a router sends each token to a few of many feed-forward blocks.

Source: transformers 5.5, `models/{mixtral,qwen3_moe,gpt_oss}/configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.llama import QWEN_HARMLESS, gated_decoder
from vinfer.checkpoint.families.mistral import read_one_window
from vinfer.checkpoint.families.reading import (
    every_nth_is_full,
    read_heads,
    read_intermediate_size,
    read_layer_types,
    read_num_layers,
    read_windows,
    refuse_other_than,
)
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.layout import Shape, Shapes, gated_mlp_shapes, linear_shapes
from vinfer.checkpoint.rope.config import read_rope


def _mixtral(keys: ConfigKeys) -> NormalisedConfig:
    keys = keys.with_defaults(rms_norm_eps=1e-5)
    num_experts, num_chosen = _read_experts(keys, default_chosen=2)
    heads = read_heads(keys, must_state_kv_heads=True)
    dense = gated_decoder(
        keys,
        "mixtral",
        heads,
        windows=read_one_window(keys, default=None),
        has_bias=False,
        rope=read_rope(keys, head_dim=heads.head_dim, default_theta=1e6),
    )
    hidden, inner = dense.facts.hidden_size, read_intermediate_size(keys)
    block = linear_shapes("block_sparse_moe.gate", num_experts, hidden)
    for expert in range(num_experts):
        name = f"block_sparse_moe.experts.{expert}"
        block |= linear_shapes(f"{name}.w1", inner, hidden)
        block |= linear_shapes(f"{name}.w2", hidden, inner)
        block |= linear_shapes(f"{name}.w3", inner, hidden)
    return _with_mixtures(
        dense,
        {"num_local_experts": num_experts, "num_experts_per_tok": num_chosen},
        [block] * dense.facts.num_layers,
    )


def _qwen3_moe(keys: ConfigKeys) -> NormalisedConfig:
    refuse_other_than(keys, _QWEN3_MOE_DESIGN)
    num_experts, num_chosen = _read_experts(keys, default_chosen=8)
    attention_bias = keys.boolean("attention_bias", False)
    num_layers = read_num_layers(keys)
    dense = gated_decoder(
        keys,
        "qwen3_moe",
        read_heads(keys, must_state_kv_heads=True),
        windows=_qwen_windows(keys),
        has_bias=attention_bias,
        has_head_norms=True,
    )
    hidden, inner = dense.facts.hidden_size, read_intermediate_size(keys, "moe_intermediate_size")
    block = linear_shapes("mlp.gate", num_experts, hidden)
    for expert in range(num_experts):
        block |= gated_mlp_shapes(f"mlp.experts.{expert}", hidden=hidden, inner=inner)
    sparse_step = keys.integer("decoder_sparse_step", 1)
    mlp_only = _read_mlp_only_layers(keys)
    is_mixture = [layer not in mlp_only and (layer + 1) % sparse_step == 0 for layer in range(num_layers)]
    return _with_mixtures(
        dense,
        {
            "num_experts": num_experts,
            "num_experts_per_tok": num_chosen,
            "moe_intermediate_size": inner,
            "norm_topk_prob": keys.boolean("norm_topk_prob", False),
            "decoder_sparse_step": sparse_step,
            "mlp_only_layers": mlp_only,
        },
        [block if is_mixture[layer] else None for layer in range(num_layers)],
    )


def _qwen_windows(keys: ConfigKeys) -> tuple[int | None, ...]:
    """Return each layer's window: all slide or none, as this family does not read `max_window_layers`."""
    windows = read_one_window(keys, default=4096)
    return windows if keys.boolean("use_sliding_window", False) else (None,) * len(windows)


def _read_mlp_only_layers(keys: ConfigKeys) -> list[int]:
    layers = keys.values.get("mlp_only_layers") or []
    if not isinstance(layers, list) or not all(isinstance(layer, int) for layer in layers):
        raise keys.refusal("mlp_only_layers", "must be a list of layer indices")
    return layers


def _gpt_oss(keys: ConfigKeys) -> NormalisedConfig:
    if keys.number("swiglu_limit", _GPT_OSS_LIMIT) != _GPT_OSS_LIMIT:
        raise keys.refusal("swiglu_limit", f"transformers and EasyDeL always clamp at {_GPT_OSS_LIMIT}")
    if not keys.has("rope_parameters") and not keys.has("rope_scaling"):
        keys = keys.updated(rope_parameters=_GPT_OSS_ROPE)
    keys = keys.with_defaults(rms_norm_eps=1e-5)
    num_experts, num_chosen = _read_experts(keys, default_chosen=4)
    num_layers = read_num_layers(keys)
    layer_types = read_layer_types(keys, num_layers, every_nth_is_full(num_layers, 2))
    attention_bias = keys.boolean("attention_bias", True)
    heads = read_heads(
        keys, default_head_dim=None if "head_dim" in keys.values else 64, must_state_kv_heads=True
    )
    dense = gated_decoder(
        keys,
        "gpt_oss",
        heads,
        windows=read_windows(keys, layer_types, 128),
        has_bias=attention_bias,
        rope=read_rope(keys, head_dim=heads.head_dim, default_theta=150_000.0),
    )
    hidden, inner = dense.facts.hidden_size, read_intermediate_size(keys)
    block = {
        "self_attn.sinks": (heads.num_attention_heads,),
        **linear_shapes("mlp.router", num_experts, hidden, has_bias=True),
        "mlp.experts.gate_up_proj": (num_experts, hidden, 2 * inner),
        "mlp.experts.gate_up_proj_bias": (num_experts, 2 * inner),
        "mlp.experts.down_proj": (num_experts, inner, hidden),
        "mlp.experts.down_proj_bias": (num_experts, hidden),
    }
    return _with_mixtures(
        dense,
        {"num_local_experts": num_experts, "num_experts_per_tok": num_chosen},
        [block] * num_layers,
    )


def _read_experts(keys: ConfigKeys, *, default_chosen: int) -> tuple[int, int]:
    """Read the number of experts and the number chosen per token.

    transformers 5 writes `num_local_experts` for all three families and reads `num_experts` as the same.
    """
    key = "num_local_experts" if keys.has("num_local_experts") else "num_experts"
    num_experts = keys.integer(key, minimum=2, maximum=2**16)
    if keys.has("num_experts") and keys.integer("num_experts") != num_experts:
        raise keys.refusal("num_experts", f"contradicts num_local_experts = {num_experts}")
    return num_experts, keys.integer("num_experts_per_tok", default_chosen, maximum=num_experts)


def _with_mixtures(
    dense: NormalisedConfig, config: Mapping[str, object], blocks: Sequence[Shapes | None]
) -> NormalisedConfig:
    """Replace dense feed-forward blocks with mixtures.

    Args:
        config: keys of EasyDeL's config class that the dense decoder lacks.
        blocks: tensors of each layer's mixture; None for a layer that stays dense.
    """
    prefixes = [f"model.layers.{layer}." for layer in range(len(blocks))]
    mixtures = {prefix: block for prefix, block in zip(prefixes, blocks, strict=True) if block is not None}
    replaced = tuple(f"{prefix}mlp." for prefix in mixtures)
    shapes: dict[str, Shape] = {
        name: shape for name, shape in dense.shapes.items() if not name.startswith(replaced)
    }
    for prefix, block in mixtures.items():
        shapes |= {f"{prefix}{name}": shape for name, shape in block.items()}
    return dataclasses.replace(
        dense,
        config={**dense.config, **config},
        facts=dataclasses.replace(dense.facts, is_mixture=True),
        shapes=shapes,
    )


_GPT_OSS_LIMIT = 7.0
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""Defaults for keys that the file does not state."""

# Qwen3-Coder states these; transformers ignores them and always computes this design.
_QWEN3_MOE_DESIGN: dict[str, object] = {
    "qkv_bias": False,
    "shared_expert_intermediate_size": 0,
    "use_qk_norm": True,
}

_TRAINING_KEYS = frozenset({"output_router_logits", "router_aux_loss_coef"})

FAMILIES = (
    Family(
        model_type="mixtral",
        architecture="MixtralForCausalLM",
        translate=_mixtral,
        # Noise on the router's input, in training only.
        harmless=_TRAINING_KEYS | {"router_jitter_noise"},
    ),
    Family(
        model_type="qwen3_moe",
        architecture="Qwen3MoeForCausalLM",
        translate=_qwen3_moe,
        harmless=_TRAINING_KEYS | QWEN_HARMLESS | {"max_window_layers"},
    ),
    Family(
        model_type="gpt_oss",
        architecture="GptOssForCausalLM",
        translate=_gpt_oss,
        # The published files have two keys of OpenAI's own code, which transformers does not read.
        harmless=_TRAINING_KEYS | {"experts_per_token", "initial_context_length"},
    ),
)
