"""SmolLM3: Llama with layers that do not rotate, and optional windows on those.

Source: transformers 5.5, `models/smollm3/configuration_smollm3.py` and `modeling_smollm3.py`.
"""

from __future__ import annotations

import dataclasses

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.llama import gated_decoder
from vinfer.checkpoint.families.reading import (
    FULL,
    SLIDING,
    read_heads,
    read_layer_types,
    read_num_layers,
    read_windows,
)
from vinfer.checkpoint.family import Family, NormalisedConfig


def _smollm3(keys: ConfigKeys) -> NormalisedConfig:
    keys = keys.with_defaults(tie_word_embeddings=True, rope_theta=2_000_000.0)
    attention_bias = keys.boolean("attention_bias", False)
    rotating = _rotating_layers(keys)
    normalised = gated_decoder(
        keys,
        "smollm3",
        read_heads(keys, must_state_kv_heads=True),
        windows=_windows(keys, rotating),
        has_bias=attention_bias,
        has_mlp_bias=keys.boolean("mlp_bias", False),
    )
    return dataclasses.replace(normalised, config={**normalised.config, "no_rope_layers": rotating})


def _rotating_layers(keys: ConfigKeys) -> list[int]:
    """Return 1 or 0 per layer; `no_rope_layers` means the opposite of its name: 1 marks a rotating layer.

    If the list is longer than the number of layers, only its start is read.
    """
    num_layers = read_num_layers(keys)
    interval = keys.integer("no_rope_layer_interval", 4)
    if not keys.has("no_rope_layers"):
        return [int((layer + 1) % interval != 0) for layer in range(num_layers)]
    stated = keys.values["no_rope_layers"]
    if not isinstance(stated, list) or any(entry not in (0, 1) for entry in stated):
        raise keys.refusal("no_rope_layers", "must be a list of 0s and 1s")
    if len(stated) < num_layers:
        raise keys.refusal(
            "no_rope_layers", f"has {len(stated)} entries for num_hidden_layers = {num_layers}"
        )
    return [int(entry) for entry in stated[:num_layers]]


def _windows(keys: ConfigKeys, rotating: list[int]) -> tuple[int | None, ...]:
    """Return each layer's window; by default, layers that do not rotate slide if windows are on."""
    is_sliding = keys.boolean("use_sliding_window", False)
    has_window = is_sliding and keys.has("sliding_window")
    defaults = [SLIDING if has_window and not rotates else FULL for rotates in rotating]
    layer_types = read_layer_types(keys, len(rotating), defaults)
    if not is_sliding and SLIDING in layer_types:
        raise keys.refusal(
            "layer_types", "has sliding_attention, but use_sliding_window is false: correct one of them"
        )
    return read_windows(keys, layer_types)


FAMILIES = (
    Family(
        model_type="smollm3",
        architecture="SmolLM3ForCausalLM",
        translate=_smollm3,
        # Published files have it; transformers' SmolLM3 does not read it.
        harmless=frozenset({"max_window_layers"}),
    ),
)
