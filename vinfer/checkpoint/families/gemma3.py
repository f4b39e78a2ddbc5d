"""Gemma 3 with images: a SigLIP vision tower and Gemma 3's decoder; attention in an image is bidirectional.

Source: transformers 5.5, `models/gemma3/{configuration,modeling}_gemma3.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families import gemma
from vinfer.checkpoint.families.vision_config import NAMES, SIGLIP, read_image_token_id, read_tower
from vinfer.checkpoint.family import Family, NormalisedConfig
from vinfer.checkpoint.image_processor import read_siglip_processing
from vinfer.checkpoint.key_check import refuse_unread_keys
from vinfer.checkpoint.layout import Shape
from vinfer.checkpoint.vision import Gemma3Facts, TowerFacts, VisionFacts

(_DECODER,) = (family for family in gemma.FAMILIES if family.model_type == "gemma3_text")
# Published files omit from text_config what Gemma3TextConfig sets by default.
_DEFAULTS: dict[str, object] = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "max_position_embeddings": 131_072,
}
_PROJECTOR = "multi_modal_projector"


def _gemma3(keys: ConfigKeys) -> NormalisedConfig:
    decoder = _decoder(keys)
    tower, tower_shapes = read_tower(keys.section("vision_config"), served=(SIGLIP,))
    encoder = Gemma3Facts(
        tower=tower,
        features_per_side=_features_per_side(keys, tower),
        out_size=decoder.facts.hidden_size,
    )
    projector: dict[str, Shape] = {
        f"{_PROJECTOR}.mm_input_projection_weight": (tower.hidden_size, encoder.out_size),
        f"{_PROJECTOR}.mm_soft_emb_norm.weight": (tower.hidden_size,),
    }
    return dataclasses.replace(
        decoder,
        model_type="gemma3",
        shapes={**decoder.shapes, **tower_shapes, **projector},
        names=NAMES,
        vision=VisionFacts(
            decoder_type=decoder.model_type,
            encoder=encoder,
            image_token_id=read_image_token_id(keys, default=262_144, vocab_size=decoder.facts.vocab_size),
            image_shape=tower.image_shape,
            read_processing=functools.partial(
                read_siglip_processing, mm_tokens_per_image=encoder.num_features
            ),
            # `create_causal_mask_mapping`: also in layers with a window, however small.
            attends_both_ways=True,
        ),
    )


def _decoder(keys: ConfigKeys) -> NormalisedConfig:
    """Translate text_config by the rules of Gemma 3's text models, with two exceptions."""
    section = keys.section("text_config")
    if section.string("model_type", "gemma3_text") != "gemma3_text":
        raise section.refusal("model_type", "supported as the decoder of gemma3: gemma3_text")
    if section.has("final_logit_softcapping"):
        raise section.refusal(
            "final_logit_softcapping", "transformers' Gemma 3 with images ignores it: remove it"
        )
    # Not read from text_config, which describes a model without a head.
    is_tied = keys.boolean("tie_word_embeddings", True)
    decoder = _DECODER.translate(section.with_defaults(**_DEFAULTS).updated(tie_word_embeddings=is_tied))
    refuse_unread_keys(section, _DECODER.harmless)
    keys.read_like(section)
    return decoder


def _features_per_side(keys: ConfigKeys, tower: TowerFacts) -> int:
    num_features = keys.integer("mm_tokens_per_image", 256, maximum=tower.patches_per_side**2)
    per_side = math.isqrt(num_features)
    if per_side**2 != num_features or tower.patches_per_side % per_side:
        raise keys.refusal(
            "mm_tokens_per_image",
            f"must be the square of a divisor of {tower.patches_per_side}, the tower's patches per side",
        )
    return per_side


FAMILIES = (
    Family(
        model_type="gemma3",
        architecture="Gemma3ForConditionalGeneration",
        translate=_gemma3,
        # The processor writes these two tokens by text, not by id.
        harmless=frozenset({"boi_token_id", "boi_token_index", "eoi_token_id", "eoi_token_index"}),
    ),
)
