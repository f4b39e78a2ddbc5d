"""Where transformers 5.5.4 itself computes something else than its models were trained for.

Applied to the reference, each beside the fact that makes it necessary. Knows one loaded model at a time.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def correct(model: PreTrainedModel) -> None:
    """Correct a model that transformers has loaded; leaves almost all as they are."""
    if model.config.model_type == "olmo3" and model.config.rope_parameters["rope_type"] != "default":
        _unscale_sliding_layers(model)


def _unscale_sliding_layers(model: PreTrainedModel) -> None:
    """Rotate the sliding layers of OLMo 3 by an unscaled table: see `vinfer.checkpoint.families.olmo`."""
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
