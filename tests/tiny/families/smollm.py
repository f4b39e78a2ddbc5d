"""Variants of SmolLM3."""

from __future__ import annotations

from tiny.models import TinyModel

MODELS = {
    # Layer 1 does not rotate.
    "smollm3": TinyModel(
        "SmolLM3",
        60,
        {
            "tie_word_embeddings": True,
            "no_rope_layer_interval": 2,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 2e4},
        },
    ),
    # Layers 1 and 2 slide and do not rotate.
    "smollm3-window": TinyModel(
        "SmolLM3",
        61,
        {
            "no_rope_layers": [1, 0, 0],
            "mlp_bias": True,
            "head_dim": 24,
            "use_sliding_window": True,
            "sliding_window": 37,
        },
    ),
}
