"""Mistral: Llama with one sliding window over all layers, or none.

Source: transformers 5.5, `models/mistral/configuration_mistral.py` and `modeling_mistral.py`.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.llama import gated_decoder
from vinfer.checkpoint.families.reading import read_heads, read_num_layers
from vinfer.checkpoint.family import Family, NormalisedConfig


def _mistral(keys: ConfigKeys) -> NormalisedConfig:
    return gated_decoder(
        keys,
        "mistral",
        read_heads(keys, must_state_kv_heads=True),
        windows=read_one_window(keys, default=4096),
        has_bias=False,
    )


def read_one_window(keys: ConfigKeys, *, default: int | None) -> tuple[int | None, ...]:
    """Read a `sliding_window` that holds for every layer; null means none.

    Args:
        default: for a file without the key.
    """
    window = default
    if "sliding_window" in keys.values:
        window = keys.integer("sliding_window") if keys.has("sliding_window") else None
    return (window,) * read_num_layers(keys)


FAMILIES = (
    Family(
        model_type="mistral",
        architecture="MistralForCausalLM",
        translate=_mistral,
    ),
)
