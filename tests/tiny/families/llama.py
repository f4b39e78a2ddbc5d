"""Variants of Llama, Qwen2 and Qwen3 beyond those of `tiny.checkpoints.MODELS`."""

from __future__ import annotations

from tiny.models import TinyModel

MODELS = {
    # Layers 1 and 2 slide.
    "qwen2-window": TinyModel(
        "Qwen2",
        20,
        {"use_sliding_window": True, "sliding_window": 37, "max_window_layers": 1},
    ),
    "llama-linear-rope": TinyModel(
        "Llama",
        21,
        {
            "num_hidden_layers": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        },
    ),
}
