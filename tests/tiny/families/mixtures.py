"""Mixtures of experts: more experts than each token uses, odd sizes, some dense layers, windows."""

from __future__ import annotations

from tiny.models import TinyModel

MODELS = {
    "mixtral": TinyModel(
        "Mixtral",
        32,
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 37},
    ),
    # Layer 0 is dense because of decoder_sparse_step, layer 3 because of mlp_only_layers.
    "qwen3-moe": TinyModel(
        "Qwen3Moe",
        33,
        {
            "num_hidden_layers": 4,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "norm_topk_prob": False,
            "attention_bias": True,
            "head_dim": 32,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 41,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "qwen3-moe-normalised": TinyModel(
        "Qwen3Moe",
        34,
        {
            "num_hidden_layers": 2,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 48,
            "norm_topk_prob": True,
        },
    ),
    # Layers 0 and 2 slide.
    "gpt-oss": TinyModel(
        "GptOss",
        35,
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "head_dim": 32,
            "sliding_window": 43,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1.5e5,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 32,
            },
        },
        stores_inputs_first=True,
    ),
    "gpt-oss-no-bias": TinyModel(
        "GptOss",
        36,
        {
            "num_hidden_layers": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "num_key_value_heads": 2,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 37,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1.5e5},
        },
        stores_inputs_first=True,
    ),
}
