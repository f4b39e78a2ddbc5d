"""LLaVA 1.5: a CLIP vision tower and a projector in front of Llama, under two layouts of tensor names.

Source: transformers 5.5, `models/llava/{configuration,modeling}_llava.py`.
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
    read_image_token_id,
    read_tower,
)
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.image_processor import read_clip_processing
from vinfer.checkpoint.key_check import refuse_unknown_keys
from vinfer.checkpoint.layout import Shape, linear_shapes
from vinfer.checkpoint.vision import LlavaFacts, VisionFacts

_DECODERS = {family.model_type: family for family in llama.FAMILIES if family.model_type == "llama"}
# Published files leave out of text_config what LlamaConfig has by itself.
_LLAMA_DEFAULTS: dict[str, object] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}
_PROJECTOR = "multi_modal_projector"


def _llava(keys: ConfigKeys) -> NormalisedConfig:
    decoder = _decoder(keys)
    tower, tower_shapes = read_tower(keys.section("vision_config"), served=(CLIP,))
    strategy = keys.string("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise keys.refusal("vision_feature_select_strategy", "default and full are served")
    encoder = LlavaFacts(
        tower=tower,
        feature_layers=_feature_layers(keys, tower.num_layers),
        drops_first=strategy == "default",
        projector_activation=read_activation(keys, ACTIVATIONS, key="projector_hidden_act", default="gelu"),
        projector_has_bias=keys.boolean("multimodal_projector_bias", True),
        out_size=decoder.facts.hidden_size,
    )
    return dataclasses.replace(
        decoder,
        model_type="llava",
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
            ),
        ),
    )


def _decoder(keys: ConfigKeys) -> NormalisedConfig:
    """Translate text_config by the rules of its own family."""
    section = keys.section("text_config")
    model_type = section.string("model_type", "llama")
    if model_type not in _DECODERS:
        raise section.refusal("model_type", f"as the decoder of llava vinfer serves {', '.join(_DECODERS)}")
    refuse_unknown_keys(section, _DECODERS[model_type])
    # transformers ties where either of the two says so.
    is_tied = keys.boolean("tie_word_embeddings", False) or section.boolean("tie_word_embeddings", False)
    values = {**section.values, "tie_word_embeddings": is_tied}
    return _DECODERS[model_type].translate(ConfigKeys(values, section.where).with_defaults(**_LLAMA_DEFAULTS))


def _feature_layers(keys: ConfigKeys, num_layers: int) -> tuple[int, ...]:
    """Read which hidden states count, from the end where negative, as indices from the start."""
    given = keys.values["vision_feature_layer"] if keys.has("vision_feature_layer") else -2
    layers = given if isinstance(given, list) else [given]
    # One hidden state before the first layer, and one after each.
    num_states = num_layers + 1
    indices = [
        layer % num_states
        for layer in layers
        if isinstance(layer, int) and not isinstance(layer, bool) and -num_states <= layer < num_states
    ]
    if not indices or len(indices) < len(layers):
        raise keys.refusal(
            "vision_feature_layer", f"must be layers from {-num_states} to {num_states - 1}, one or a list"
        )
    return tuple(indices)


def _projector_shapes(encoder: LlavaFacts) -> dict[str, Shape]:
    joined = encoder.tower.hidden_size * len(encoder.feature_layers)
    has_bias, out = encoder.projector_has_bias, encoder.out_size
    return {
        **linear_shapes(f"{_PROJECTOR}.linear_1", out, joined, has_bias=has_bias),
        **linear_shapes(f"{_PROJECTOR}.linear_2", out, out, has_bias=has_bias),
    }


FAMILIES = (
    Family(
        model_type="llava",
        architecture="LlavaForConditionalGeneration",
        keys=frozenset(
            {
                "image_token_id",
                "image_token_index",
                "multimodal_projector_bias",
                "projector_hidden_act",
                "text_config",
                "vision_config",
                "vision_feature_layer",
                "vision_feature_select_strategy",
            }
        ),
        translate=_llava,
        # Of training, and what the processor's own settings decide.
        harmless=frozenset({"ignore_index", "image_seq_length"}),
    ),
)
