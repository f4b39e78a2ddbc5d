"""Llama, Qwen2 and Qwen3 with every rotary type and variant; `test_parity.py` has more plain ones."""

from __future__ import annotations

from typing import Any

from tiny.models import TinyModel

_ROPE: dict[str, Any] = {"rope_theta": 5e4, "rope_type": "default"}

MODELS = {
    "llama-default": TinyModel("Llama", 20, {"tie_word_embeddings": True, "rope_parameters": _ROPE}),
    "llama-linear-rope": TinyModel(
        "Llama",
        21,
        {
            "num_hidden_layers": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {**_ROPE, "rope_type": "linear", "factor": 4.0},
        },
    ),
    # Wavelengths of a head of 16 lie below, between and above 48 / 4 and 48 / 1.
    "llama-llama3-rope": TinyModel(
        "Llama",
        22,
        {
            "num_hidden_layers": 2,
            "rope_parameters": {
                **_ROPE,
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 48,
            },
        },
    ),
    "llama-yarn": TinyModel(
        "Llama",
        23,
        {
            "num_hidden_layers": 2,
            "rope_parameters": {
                **_ROPE,
                "rope_type": "yarn",
                "factor": 16.0,
                "original_max_position_embeddings": 48,
            },
        },
    ),
    "qwen2-default": TinyModel("Qwen2", 24, {"tie_word_embeddings": True, "rope_parameters": _ROPE}),
    # Layers 1 and 2 slide.
    "qwen2-window": TinyModel(
        "Qwen2",
        25,
        {"use_sliding_window": True, "sliding_window": 37, "max_window_layers": 1},
    ),
    # A head is wider than hidden_size / num_attention_heads.
    "qwen3-default": TinyModel(
        "Qwen3",
        26,
        {"num_hidden_layers": 2, "head_dim": 32, "attention_bias": True, "rope_parameters": _ROPE},
    ),
}
