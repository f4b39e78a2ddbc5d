"""LLaVA 1.5 and ViP-LLaVA: a vision tower and a two-layer projector in front of a text decoder.

Source: transformers 5.5, `models/{llava,vipllava}/configuration_*.py` and `modeling_*.py`.
"""

from __future__ import annotations

import dataclasses
import functools

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families import llama
from vinfer.checkpoint.families.reading import read_activation
from vinfer.checkpoint.families.vision_config import (
    ACTIVATIONS,
    CLIP,
    NAMES,
    SIGLIP,
    read_image_token_id,
    read_tower,
)
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.image_processor import read_clip_processing
from vinfer.checkpoint.key_check import refuse_unread_keys
from vinfer.checkpoint.layout import Shape, linear_shapes, norm_shapes
from vinfer.checkpoint.vision import LlavaFacts, VisionFacts

# Published files omit from text_config what LlamaConfig or Qwen2Config sets by default.
_DECODER_DEFAULTS: dict[str, dict[str, object]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    "qwen2": {"vocab_size": 151_936, "max_position_embeddings": 32768},
}
_DECODERS = {family.model_type: family for family in llama.FAMILIES if family.model_type in _DECODER_DEFAULTS}
_PROJECTOR = "multi_modal_projector"


def _llava(keys: ConfigKeys) -> NormalisedConfig:
    # transformers ties the embeddings if either config says so.
    is_tied = keys.boolean("tie_word_embeddings", False) or keys.section("text_config").boolean(
        "tie_word_embeddings", False
    )
    decoder = _decoder(keys, tuple(_DECODERS), is_tied=is_tied)
    tower, tower_shapes = read_tower(keys.section("vision_config"), served=(CLIP, SIGLIP))
    strategy = keys.string("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise keys.refusal("vision_feature_select_strategy", "supported: default, full")
    encoder = LlavaFacts(
        tower=tower,
        feature_layers=_feature_layers(keys, "vision_feature_layer", tower.num_layers, default=(-2,)),
        drops_first=strategy == "default",
        projector_activation=read_activation(keys, ACTIVATIONS, key="projector_hidden_act", default="gelu"),
        projector_has_bias=keys.boolean("multimodal_projector_bias", True),
        out_size=decoder.facts.hidden_size,
    )
    return _with_images(keys, "llava", decoder, encoder, tower_shapes)


def _vipllava(keys: ConfigKeys) -> NormalisedConfig:
    decoder = _decoder(keys, ("llama",), is_tied=keys.boolean("tie_word_embeddings", False))
    tower, tower_shapes = read_tower(keys.section("vision_config"), served=(CLIP,))
    layers = _feature_layers(keys, "vision_feature_layers", tower.num_layers, default=(-2, -5, -8, -11, 6))
    encoder = LlavaFacts(
        tower=tower,
        feature_layers=layers,
        drops_first=True,
        projector_norm_epsilon=keys.number("projector_layernorm_eps", 1e-5),
        projector_activation=read_activation(keys, ACTIVATIONS, key="projector_hidden_act", default="gelu"),
        projector_has_bias=True,
        out_size=decoder.facts.hidden_size,
    )
    return _with_images(keys, "vipllava", decoder, encoder, tower_shapes)


def _with_images(
    keys: ConfigKeys,
    model_type: str,
    decoder: NormalisedConfig,
    encoder: LlavaFacts,
    tower_shapes: dict[str, Shape],
) -> NormalisedConfig:
    """Combine the decoder and the encoder."""
    tower = encoder.tower
    return dataclasses.replace(
        decoder,
        model_type=model_type,
        shapes={**decoder.shapes, **tower_shapes, **_projector_shapes(encoder)},
        names=NAMES,
        vision=VisionFacts(
            decoder_type=decoder.model_type,
            encoder=encoder,
            image_token_id=read_image_token_id(keys, default=32000, vocab_size=decoder.facts.vocab_size),
            image_shape=tower.image_shape,
            read_processing=functools.partial(
                read_clip_processing,
                patch_size=tower.patch_size,
                select_strategy="default" if encoder.drops_first else "full",
                num_additional_tokens=1 if tower.is_clip else 0,
            ),
        ),
    )


def _decoder(keys: ConfigKeys, served: tuple[str, ...], *, is_tied: bool) -> NormalisedConfig:
    """Translate text_config by the rules of its own family."""
    section = keys.section("text_config")
    model_type = section.string("model_type", "llama")
    if model_type not in served:
        raise section.refusal("model_type", f"supported as its decoder: {' and '.join(served)}")
    own = section.with_defaults(**_DECODER_DEFAULTS[model_type]).updated(tie_word_embeddings=is_tied)
    decoder = _DECODERS[model_type].translate(own)
    refuse_unread_keys(section, _DECODERS[model_type].harmless)
    keys.read_like(section)
    return decoder


def _feature_layers(
    keys: ConfigKeys, key: str, num_layers: int, *, default: tuple[int, ...]
) -> tuple[int, ...]:
    """Read which hidden states are used; negative ones count from the end. Returns indices from the start."""
    given = keys.values[key] if keys.has(key) else list(default)
    layers = given if isinstance(given, list) else [given]
    # One hidden state before the first layer, and one after each.
    num_states = num_layers + 1
    indices = [
        layer % num_states
        for layer in layers
        if isinstance(layer, int) and not isinstance(layer, bool) and -num_states <= layer < num_states
    ]
    if not indices or len(indices) < len(layers):
        raise keys.refusal(key, f"must be layers from {-num_states} to {num_states - 1}, one or a list")
    return tuple(indices)


def _projector_shapes(encoder: LlavaFacts) -> dict[str, Shape]:
    joined = encoder.tower.hidden_size * len(encoder.feature_layers)
    has_bias, out = encoder.projector_has_bias, encoder.out_size
    norm: dict[str, Shape] = {}
    if encoder.projector_norm_epsilon is not None:
        norm = norm_shapes((f"{_PROJECTOR}.projector_layernorm",), joined, has_bias=True)
    return {
        **norm,
        **linear_shapes(f"{_PROJECTOR}.linear_1", out, joined, has_bias=has_bias),
        **linear_shapes(f"{_PROJECTOR}.linear_2", out, out, has_bias=has_bias),
    }


# For training, or settled by the processor's own settings.
_HARMLESS = frozenset({"ignore_index", "image_seq_length"})

FAMILIES = (
    Family(
        model_type="llava",
        architecture="LlavaForConditionalGeneration",
        translate=_llava,
        harmless=_HARMLESS,
    ),
    Family(
        model_type="vipllava",
        architecture="VipLlavaForConditionalGeneration",
        translate=_vipllava,
        harmless=_HARMLESS,
    ),
)
