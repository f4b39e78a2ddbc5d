"""StableLM: layer norms, partial rotation, norms per head, a parallel block."""

from __future__ import annotations

from tiny.models import TinyModel

SIZES = {"rms_norm_eps": ..., "layer_norm_eps": 1e-4}

MODELS = {
    # A head has 16 dimensions, of which 4 are rotated.
    "stablelm": TinyModel("StableLm", 60, {**SIZES, "use_qkv_bias": True}),
    "stablelm-parallel": TinyModel(
        "StableLm",
        61,
        {
            **SIZES,
            "tie_word_embeddings": True,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 3e4,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
}
