"""LLaVA 1.5: a CLIP vision tower and a projector in front of Llama, under two layouts of tensor names.

Source: transformers 5.5, `models/llava/{configuration,modeling}_llava.py`, `models/clip/modeling_clip.py`.
"""

from __future__ import annotations

import dataclasses
import functools

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families import llama
from vinfer.checkpoint.families.reading import (
    read_activation,
    read_hidden_size,
    read_intermediate_size,
    read_num_layers,
)
from vinfer.checkpoint.family import Family, NormalisedConfig, TensorNames
from vinfer.checkpoint.image_processor import read_clip_processing
from vinfer.checkpoint.key_check import refuse_unknown_keys
from vinfer.checkpoint.layout import Shape, linear_shapes, norm_shapes
from vinfer.checkpoint.vision import ClipFacts, VisionFacts

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
_ACTIVATIONS = {name: name for name in ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh")}
_TOWER = "vision_tower.vision_model"
_PROJECTOR = "multi_modal_projector"
_PREFIXES = (
    # As published; as transformers 5 calls them inside; and as it saves them, half one and half the other.
    ("model.language_model.model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def _llava(keys: ConfigKeys) -> NormalisedConfig:
    decoder = _decoder(keys)
    tower = _clip(keys, out_size=decoder.facts.hidden_size)
    image_token_id = _image_token_id(keys, vocab_size=decoder.facts.vocab_size)
    return dataclasses.replace(
        decoder,
        model_type="llava",
        shapes={**decoder.shapes, **_tower_shapes(tower), **_projector_shapes(tower)},
        names=TensorNames(renamed=_PREFIXES, buffers=(".rotary_emb.inv_freq", ".embeddings.position_ids")),
        vision=VisionFacts(
            decoder_type=decoder.model_type,
            encoder=tower,
            image_token_id=image_token_id,
            image_shape=(tower.num_channels, tower.image_size, tower.image_size),
            read_processing=functools.partial(
                read_clip_processing,
                patch_size=tower.patch_size,
                select_strategy="full" if tower.has_class_token else "default",
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


def _clip(keys: ConfigKeys, *, out_size: int) -> ClipFacts:
    section = keys.section("vision_config")
    if section.string("model_type", "clip_vision_model") != "clip_vision_model":
        raise section.refusal("model_type", "as the vision tower of llava vinfer serves clip_vision_model")
    refuse_unknown_keys(section, _CLIP)
    hidden, num_heads = read_hidden_size(section), section.integer("num_attention_heads", maximum=2**16)
    if hidden % num_heads:
        raise section.refusal("num_attention_heads", f"must divide hidden_size = {hidden}")
    num_layers = read_num_layers(section)
    image_size = section.integer("image_size", 224, maximum=2**14)
    strategy = keys.string("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise keys.refusal("vision_feature_select_strategy", "default and full are served")
    return ClipFacts(
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_size=hidden,
        inner_size=read_intermediate_size(section),
        num_channels=section.integer("num_channels", 3, minimum=3, maximum=3),
        image_size=image_size,
        patch_size=section.integer("patch_size", 32, maximum=image_size),
        norm_epsilon=section.number("layer_norm_eps", 1e-5),
        activation=read_activation(section, _ACTIVATIONS, default="quick_gelu"),
        feature_layers=_feature_layers(keys, num_layers),
        has_class_token=strategy == "full",
        projector_activation=read_activation(keys, _ACTIVATIONS, key="projector_hidden_act", default="gelu"),
        projector_has_bias=keys.boolean("multimodal_projector_bias", True),
        out_size=out_size,
    )


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


def _image_token_id(keys: ConfigKeys, *, vocab_size: int) -> int:
    stated = [keys.values[key] for key in ("image_token_id", "image_token_index") if keys.has(key)]
    if len(stated) > 1 and stated[0] != stated[1]:
        raise keys.refusal("image_token_id", "differs from image_token_index: take one of them out")
    key = "image_token_id" if keys.has("image_token_id") else "image_token_index"
    return keys.integer(key, 32000, minimum=0, maximum=vocab_size - 1)


def _tower_shapes(tower: ClipFacts) -> dict[str, Shape]:
    hidden = tower.hidden_size
    layer = {
        **{
            name: shape
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj")
            for name, shape in linear_shapes(f"self_attn.{projection}", hidden, hidden, has_bias=True).items()
        },
        **linear_shapes("mlp.fc1", tower.inner_size, hidden, has_bias=True),
        **linear_shapes("mlp.fc2", hidden, tower.inner_size, has_bias=True),
        **norm_shapes(("layer_norm1", "layer_norm2"), hidden, has_bias=True),
    }
    patch = (hidden, tower.num_channels, tower.patch_size, tower.patch_size)
    return {
        f"{_TOWER}.embeddings.class_embedding": (hidden,),
        f"{_TOWER}.embeddings.patch_embedding.weight": patch,
        f"{_TOWER}.embeddings.position_embedding.weight": (tower.num_patches + 1, hidden),
        # So spelled in every checkpoint.
        **norm_shapes((f"{_TOWER}.pre_layrnorm", f"{_TOWER}.post_layernorm"), hidden, has_bias=True),
        **{
            f"{_TOWER}.encoder.layers.{index}.{name}": shape
            for index in range(tower.num_layers)
            for name, shape in layer.items()
        },
    }


def _projector_shapes(tower: ClipFacts) -> dict[str, Shape]:
    joined = tower.hidden_size * len(tower.feature_layers)
    has_bias, out = tower.projector_has_bias, tower.out_size
    return {
        **linear_shapes(f"{_PROJECTOR}.linear_1", out, joined, has_bias=has_bias),
        **linear_shapes(f"{_PROJECTOR}.linear_2", out, out, has_bias=has_bias),
    }


def _no_decoder(keys: ConfigKeys) -> NormalisedConfig:
    raise keys.refusal("model_type", "is a vision tower, not a model that answers")


_CLIP = Family(
    model_type="clip_vision_model",
    architecture="CLIPVisionModel",
    keys=frozenset({"image_size", "layer_norm_eps", "num_channels", "patch_size"}),
    translate=_no_decoder,
    # Of the text half and of training.
    harmless=frozenset({"dropout", "initializer_factor", "projection_dim"}),
)

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
