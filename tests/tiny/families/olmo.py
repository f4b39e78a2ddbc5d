"""Variants of OLMo 2 and 3."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from tiny.models import TinyModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unscale_sliding_layers(model: PreTrainedModel) -> None:
    """Rotate the sliding layers of OLMo 3 as it was trained: see `vinfer.checkpoint.families.olmo`."""
    from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
    for layer, layer_type in zip(model.model.layers, config.layer_types, strict=True):
        if layer_type == "sliding_attention":
            layer.unscaled_rotary = Olmo3RotaryEmbedding(config)
            layer.register_forward_pre_hook(_rotate_unscaled, with_kwargs=True)


def _rotate_unscaled(layer: Any, arguments: Any, options: dict[str, Any]) -> Any:
    options["position_embeddings"] = layer.unscaled_rotary(arguments[0], options["position_ids"])
    return arguments, options


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
    # As the 1B and 7B models: as many heads in k as in q.
    "olmo2-tied": TinyModel(
        "Olmo2", 63, {"num_key_value_heads": 8, "num_hidden_layers": 2, "tie_word_embeddings": True}
    ),
    # Layer 3 sees all.
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
        correct_reference=unscale_sliding_layers,
    ),
}
