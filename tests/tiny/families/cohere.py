"""Variants of Cohere 2."""

from __future__ import annotations

from typing import Any

from tiny.models import TinyModel

_NORMS: dict[str, Any] = {"rms_norm_eps": ..., "layer_norm_eps": 1e-5}

MODELS = {
    # Layer 3 neither slides nor rotates.
    "cohere2": TinyModel(
        "Cohere2",
        66,
        {
            **_NORMS,
            "num_hidden_layers": 4,
            "tie_word_embeddings": True,
            "sliding_window": 33,
            "logit_scale": 0.25,
        },
    ),
    "cohere2-untied": TinyModel(
        "Cohere2",
        67,
        {
            **_NORMS,
            "attention_bias": True,
            "head_dim": 24,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 41,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
        },
    ),
}
