"""Gemma 2 and Gemma 3 (text): windows on some layers, soft-caps, two rotary tables, tied heads."""

from __future__ import annotations

from typing import Any

from tiny.models import TinyModel

_GEMMA: dict[str, Any] = {
    "head_dim": 32,
    "num_hidden_layers": 4,
    "sliding_window": 41,
    "query_pre_attn_scalar": 24,
    "tie_word_embeddings": True,
}
# Gemma multiplies embeddings by the root of hidden_size.
_EMBEDDING = 0.02

MODELS = {
    # Caps low enough to have an effect.
    "gemma2": TinyModel(
        "Gemma2",
        38,
        {**_GEMMA, "attn_logit_softcapping": 6.0, "final_logit_softcapping": 1.0, "attention_bias": True},
        norm_mean=0.0,
        embedding_deviation=_EMBEDDING,
    ),
    "gemma3": TinyModel(
        "Gemma3",
        31,
        {
            **_GEMMA,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        config_class="Gemma3TextConfig",
        norm_mean=0.0,
        embedding_deviation=_EMBEDDING,
    ),
    "gemma3-capped": TinyModel(
        "Gemma3",
        32,
        {
            **_GEMMA,
            "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
            "final_logit_softcapping": 5.0,
            "tie_word_embeddings": False,
        },
        config_class="Gemma3TextConfig",
        norm_mean=0.0,
        embedding_deviation=_EMBEDDING,
    ),
}
