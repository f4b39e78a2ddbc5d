"""GLM-4: four norms per layer, partial rotation in pairs."""

from __future__ import annotations

from tiny.models import TinyModel

MODELS = {
    # A head is wider than hidden_size / num_attention_heads; half of it is rotated.
    "glm4": TinyModel("Glm4", 65, {"head_dim": 24}),
    "glm4-no-bias": TinyModel(
        "Glm4",
        66,
        {
            "head_dim": 16,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 3e4},
        },
    ),
}
