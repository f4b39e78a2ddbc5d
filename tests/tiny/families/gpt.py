"""GPT-2 and GPT-NeoX: fused projections, layer norms, learned positions or partial rotation."""

from __future__ import annotations

from typing import Any

from tiny.models import TinyModel

NEOX: dict[str, Any] = {"rms_norm_eps": ..., "num_key_value_heads": ..., "layer_norm_eps": 1e-4}
GPT2: dict[str, Any] = {
    **dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
        ),
        ...,
    ),
    "n_embd": 128,
    "n_head": 8,
    "n_layer": 3,
    "n_positions": 300,
    "layer_norm_epsilon": 1e-4,
}
# A plain GELU treats tokens much alike; with large biases, answers would repeat one token.
DEVIATIONS = {"bias_deviation": 0.1, "embedding_deviation": 0.1}

MODELS = {
    "gpt2": TinyModel(
        "GPT2",
        70,
        {**GPT2, "tie_word_embeddings": True},
        model_class="GPT2LMHeadModel",
        stores_inputs_first=True,
        **DEVIATIONS,
    ),
    "gpt2-scaled": TinyModel(
        "GPT2",
        71,
        {
            **GPT2,
            "n_inner": 192,
            "activation_function": "gelu",
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
        },
        model_class="GPT2LMHeadModel",
        stores_inputs_first=True,
        **DEVIATIONS,
    ),
    # A head has 16 dimensions, of which 4 are rotated.
    "gpt-neox": TinyModel("GPTNeoX", 72, NEOX, **DEVIATIONS),
    "gpt-neox-sequential": TinyModel(
        "GPTNeoX",
        73,
        {
            **NEOX,
            "tie_word_embeddings": True,
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_act": "gelu_fast",
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 3e4,
                "partial_rotary_factor": 1.0,
            },
        },
        **DEVIATIONS,
    ),
}
