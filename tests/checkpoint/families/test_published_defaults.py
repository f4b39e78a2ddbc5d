"""Published configs, complete and with one key removed, against transformers' config and model classes.

Every family has its own defaults, and a wrong default silently gives wrong logits: Mixtral and gpt-oss once
had Llama's epsilon here.
"""

from __future__ import annotations

import copy
import functools
import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="transformers makes the models to compare with")

from published_configs import CONFIGS, published

from vinfer.checkpoint.family import NormalisedConfig
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.vision import Gemma3Facts, Qwen2VLFacts
from vinfer.errors import CheckpointError

# Windows are in the facts; there is no dropout in inference; GPT-2's model computes its own width.
OURS = {"head_dim", "hidden_act", "layer_types", "n_inner", "sliding_window", "use_sliding_window"}
HEADS = {"lm_head.weight", "embed_out.weight"}


def shortened(name: str) -> dict[str, Any]:
    """Return the config with fewer layers and experts, and without quantization, which concerns tensors."""
    config = copy.deepcopy(published(name))
    config.pop("quantization_config", None)
    smaller: dict[str, Any] = {"num_hidden_layers": 6, "n_layer": 6, "num_local_experts": 8, "num_experts": 8}
    smaller |= {key: config[key][:6] for key in ("layer_types", "no_rope_layers") if key in config}
    return config | {key: value for key, value in smaller.items() if key in config}


def differences(config: dict[str, Any]) -> list[object]:
    """List the differences between our reading of a config and transformers'.

    Raises:
        CheckpointError: the config is unsupported.
    """
    from transformers import CONFIG_MAPPING

    ours = normalise(config)
    whole = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    # Most keys that are left out have the default that they had: the same model again.
    model = their_model(
        config["model_type"],
        json.dumps(whole.to_dict(), sort_keys=True, default=str),
        takes_images=ours.vision is not None,
    )
    # The decoder of an image model is compared like a text model.
    theirs = getattr(whole, "text_config", whole)
    decoder = model if ours.vision is None else model.model.language_model
    attention = next(module for module in decoder.modules() if type(module).__name__.endswith("Attention"))
    facts = ours.facts
    found: list[tuple[object, ...]] = [
        *vision_facts(ours, whole),
        ("is_tied", facts.is_tied, whole.tie_word_embeddings),
        ("windows", facts.windows, windows(theirs)),
        ("key_dim", facts.key_dim, getattr(attention, "head_dim", None) or attention.head_size),
    ]
    if not facts.is_mixture:  # transformers stacks experts when it loads them
        tensors = {
            ours.names.our_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()
        }
        found.append(("tensors", ours.shapes, without_tied_head(tensors, is_tied=facts.is_tied)))
    found += [
        (key, value, getattr(theirs, key))
        for key, value in ours.config.items()
        if hasattr(theirs, key) and key not in OURS and "drop" not in key
    ]
    return [entry for entry in found if entry[1] != entry[2]] + rotary_differences(ours, theirs, decoder)


@functools.lru_cache(maxsize=32)
def their_model(model_type: str, config: str, *, takes_images: bool) -> Any:
    """Return the model that transformers builds from a whole config, without memory for its tensors."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    auto = AutoModelForImageTextToText if takes_images else AutoModelForCausalLM
    whole = CONFIG_MAPPING[model_type].from_dict(json.loads(config))
    with torch.device("meta"):
        return auto.from_config(whole, attn_implementation="eager")


def vision_facts(ours: NormalisedConfig, theirs: Any) -> list[tuple[object, ...]]:
    """List (fact, our value, transformers' value) for the image half; its sizes are in the tensors."""
    if ours.vision is None:
        return []
    encoder, tower = ours.vision.encoder, theirs.vision_config
    if isinstance(encoder, Qwen2VLFacts):
        rope = theirs.text_config.rope_parameters
        return [
            ("image_token_id", ours.vision.image_token_id, theirs.image_token_id),
            ("activation", encoder.activation, tower.hidden_act),
            ("num_heads", encoder.num_heads, tower.num_heads),
            ("merge_size", encoder.merge_size, tower.spatial_merge_size),
            ("window", encoder.window_size, window_of(tower, encoder.window_size)),
            ("full layers", encoder.full_layers, full_layers_of(tower)),
            ("sections", list(ours.facts.rope_sections), rope["mrope_section"]),
        ]
    of_all: list[tuple[object, ...]] = [
        ("image_token_id", ours.vision.image_token_id, theirs.image_token_id),
        ("activation", encoder.tower.activation, tower.hidden_act),
        ("norm_epsilon", encoder.tower.norm_epsilon, tower.layer_norm_eps),
        ("num_heads", encoder.tower.num_heads, tower.num_attention_heads),
    ]
    if isinstance(encoder, Gemma3Facts):
        return [*of_all, ("num_features", encoder.num_features, theirs.mm_tokens_per_image)]
    of_all.append(("projector", encoder.projector_activation, theirs.projector_hidden_act))
    num_states = tower.num_hidden_layers + 1
    if encoder.projector_norm_epsilon is not None:
        layers = tuple(layer % num_states for layer in theirs.vision_feature_layers)
        return [
            *of_all,
            ("epsilon", encoder.projector_norm_epsilon, theirs.projector_layernorm_eps),
            ("layers", encoder.feature_layers, layers),
        ]
    return [
        *of_all,
        ("drops_first", encoder.drops_first, theirs.vision_feature_select_strategy == "default"),
        ("layers", encoder.feature_layers, (theirs.vision_feature_layer % num_states,)),
    ]


def window_of(tower: Any, without: int) -> int:
    """Return a window's side in Qwen2.5-VL's tower, in features; Qwen2-VL's tower has no windows."""
    if tower.model_type == "qwen2_vl":
        return without
    side: int = tower.window_size // tower.spatial_merge_size // tower.patch_size
    return side


def full_layers_of(tower: Any) -> tuple[int, ...]:
    full = getattr(tower, "fullatt_block_indexes", range(tower.depth))
    return tuple(layer for layer in range(tower.depth) if layer in full)


def windows(theirs: Any) -> tuple[int | None, ...]:
    window = getattr(theirs, "sliding_window", None)
    layer_types = getattr(theirs, "layer_types", None)
    if layer_types is None:
        return (window,) * theirs.num_hidden_layers
    return tuple(window if layer_type == "sliding_attention" else None for layer_type in layer_types)


def without_tied_head(tensors: dict[str, tuple[int, ...]], *, is_tied: bool) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in tensors.items() if not (is_tied and name in HEADS)}


def rotary_differences(ours: NormalisedConfig, theirs: Any, model: Any) -> list[object]:
    rotary = next((m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")), None)
    if rotary is None:
        return [("ropes", ours.ropes)] if ours.ropes else []
    rotary = type(rotary)(theirs, device="cpu")
    found: list[object] = []
    for name, rope in ours.ropes.items():
        prefix = f"{name}_" if hasattr(rotary, f"{name}_inv_freq") else ""
        # transformers 5.5 scales OLMo 3's sliding layers by mistake: see families/olmo.py.
        if theirs.model_type == "olmo3" and name == "sliding_attention":
            continue
        expected = getattr(rotary, f"{prefix}inv_freq").numpy()
        frequencies = rope.inverse_frequencies(length(rope, ours))
        if frequencies.shape != expected.shape or not np.allclose(frequencies, expected, rtol=1e-6, atol=0):
            found.append((name, frequencies, expected))
        factor = getattr(rotary, f"{prefix}attention_scaling")
        if rope.attention_factor != pytest.approx(factor, rel=1e-7):
            found.append((name, rope.attention_factor, factor))
    return found


def length(rope: RopeFacts, ours: NormalisedConfig) -> int:
    """Return a length at which longrope uses its short factors, like a new transformers model."""
    longest = ours.facts.num_positions
    return min(longest, rope.original_max_position_embeddings) if rope.rope_type == "longrope" else longest


@pytest.mark.parametrize("name", CONFIGS)
def test_facts_and_defaults_are_those_of_transformers(name: str) -> None:
    config = shortened(name)
    assert differences(config) == []
    compared = []
    for key in sorted(config.keys() - {"model_type"}):
        without = {other: value for other, value in config.items() if other != key}
        try:
            assert differences(without) == [], key
        except CheckpointError:
            continue  # a size without a default in the family
        compared.append(key)
    assert len(compared) > 8
