"""Mistral: with a window on all layers, and without one."""

from __future__ import annotations

from tiny.models import TinyModel

MODELS = {
    "mistral": TinyModel("Mistral", 30, {"sliding_window": 37, "head_dim": 32}),
    "mistral-no-window": TinyModel(
        "Mistral",
        31,
        {
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
}
