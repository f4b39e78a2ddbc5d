"""Variants of OLMo 2 and 3."""

from __future__ import annotations

from tiny.models import TinyModel

MODELS = {
    "olmo2": TinyModel(
        "Olmo2",
        62,
        {
            "attention_bias": True,
            "head_dim": 24,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
        },
    ),
    # Like the 1B and 7B models: as many k heads as q heads.
    "olmo2-tied": TinyModel(
        "Olmo2", 63, {"num_key_value_heads": 8, "num_hidden_layers": 2, "tie_word_embeddings": True}
    ),
    # Layer 3 has no window.
    "olmo3": TinyModel(
        "Olmo3",
        64,
        {
            "num_hidden_layers": 4,
            "attention_bias": True,
            "sliding_window": 29,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
        },
    ),
    # Only layer 1 is scaled.
    "olmo3-yarn": TinyModel(
        "Olmo3",
        65,
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
            "sliding_window": 41,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5e3,
                "factor": 8.0,
                "original_max_position_embeddings": 32,
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        },
    ),
}
