"""Variants of Phi-3."""

from __future__ import annotations

from tiny.models import TinyModel

MODELS = {
    # All layers slide, as in Phi-3-mini-4k.
    "phi3": TinyModel(
        "Phi3",
        68,
        {
            "head_dim": 24,
            "sliding_window": 37,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 1.0},
        },
    ),
    # Phi-4-mini: 12 of the 16 dimensions of a head rotate.
    "phi3-longrope": TinyModel(
        "Phi3",
        69,
        {
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
                "long_factor": [1.0, 1.5, 2.5, 4.0, 7.0, 11.0],
            },
        },
    ),
}
