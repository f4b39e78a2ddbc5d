"""What image families share: vision_config, the placeholder token, and the names of their tensors.

Source: transformers 5.5, `models/{clip,siglip}/{configuration,modeling}_*.py`, `conversion_mapping.py`.
"""

from __future__ import annotations

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.reading import (
    layers_shapes,
    read_activation,
    read_hidden_size,
    read_intermediate_size,
    read_num_layers,
)
from vinfer.checkpoint.family import TensorNames
from vinfer.checkpoint.key_check import refuse_unread_keys
from vinfer.checkpoint.layout import Shape, linear_shapes, norm_shapes
from vinfer.checkpoint.vision import TowerFacts

ACTIVATIONS = {name: name for name in ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh")}
CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
NAMES = TensorNames(
    renamed=(
        # As published; as transformers 5 names them internally; and as it saves them, a mix of both.
        ("model.language_model.model.", "model."),
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
    buffers=(".rotary_emb.inv_freq", ".embeddings.position_ids"),
)
_TOWER = "vision_tower.vision_model"


def read_tower(section: ConfigKeys, *, served: tuple[str, ...]) -> tuple[TowerFacts, dict[str, Shape]]:
    """Read a vision_config: the tower, and the shapes of all its tensors in a checkpoint.

    Args:
        served: supported model types of towers; the first is the default.

    Raises:
        CheckpointError: an unsupported key or value.
    """
    model_type = section.string("model_type", served[0])
    if model_type not in served:
        raise section.refusal("model_type", f"supported as the vision tower: {' and '.join(served)}")
    is_clip = model_type == CLIP
    hidden, num_heads = read_hidden_size(section), section.integer("num_attention_heads", maximum=2**16)
    if hidden % num_heads:
        raise section.refusal("num_attention_heads", f"must divide hidden_size = {hidden}")
    image_size = section.integer("image_size", 224, maximum=2**14)
    tower = TowerFacts(
        is_clip=is_clip,
        num_layers=read_num_layers(section),
        num_heads=num_heads,
        hidden_size=hidden,
        inner_size=read_intermediate_size(section),
        num_channels=section.integer("num_channels", 3, minimum=3, maximum=3),
        image_size=image_size,
        patch_size=section.integer("patch_size", 32 if is_clip else 16, maximum=image_size),
        norm_epsilon=section.number("layer_norm_eps", 1e-5 if is_clip else 1e-6),
        activation=read_activation(
            section, ACTIVATIONS, default="quick_gelu" if is_clip else "gelu_pytorch_tanh"
        ),
    )
    has_head = not is_clip and section.boolean("vision_use_head", True)
    refuse_unread_keys(section, _CLIP_HARMLESS if is_clip else frozenset())
    return tower, {**_tower_shapes(tower), **(_head_shapes(tower) if has_head else {})}


def read_image_token_id(keys: ConfigKeys, *, default: int, vocab_size: int) -> int:
    """Read the placeholder's id, under its name in transformers 4 or 5."""
    stated = [keys.values[key] for key in ("image_token_id", "image_token_index") if keys.has(key)]
    if len(stated) > 1 and stated[0] != stated[1]:
        raise keys.refusal("image_token_id", "differs from image_token_index: remove one of them")
    key = "image_token_id" if keys.has("image_token_id") else "image_token_index"
    return keys.integer(key, default, minimum=0, maximum=vocab_size - 1)


def _layer_parts_shapes(tower: TowerFacts) -> dict[str, Shape]:
    hidden = tower.hidden_size
    return {
        **linear_shapes("mlp.fc1", tower.inner_size, hidden, has_bias=True),
        **linear_shapes("mlp.fc2", hidden, tower.inner_size, has_bias=True),
    }


def _tower_shapes(tower: TowerFacts) -> dict[str, Shape]:
    hidden = tower.hidden_size
    layer = {
        **{
            name: shape
            for projection in ("q_proj", "k_proj", "v_proj", "out_proj")
            for name, shape in linear_shapes(f"self_attn.{projection}", hidden, hidden, has_bias=True).items()
        },
        **_layer_parts_shapes(tower),
        **norm_shapes(("layer_norm1", "layer_norm2"), hidden, has_bias=True),
    }
    patch = (hidden, tower.num_channels, tower.patch_size, tower.patch_size)
    first: dict[str, Shape] = (
        {
            f"{_TOWER}.embeddings.class_embedding": (hidden,),
            # Spelled this way in every checkpoint.
            **norm_shapes((f"{_TOWER}.pre_layrnorm",), hidden, has_bias=True),
        }
        if tower.is_clip
        else {f"{_TOWER}.embeddings.patch_embedding.bias": (hidden,)}
    )
    return {
        f"{_TOWER}.embeddings.patch_embedding.weight": patch,
        f"{_TOWER}.embeddings.position_embedding.weight": (tower.num_positions, hidden),
        **first,
        **norm_shapes((f"{_TOWER}.post_layernorm",), hidden, has_bias=True),
        **layers_shapes(f"{_TOWER}.encoder.layers", layer, tower.num_layers),
    }


def _head_shapes(tower: TowerFacts) -> dict[str, Shape]:
    """List SigLIP's pooling head, which turns an image into one vector and is unused here."""
    hidden = tower.hidden_size
    head = {
        "probe": (1, 1, hidden),
        "attention.in_proj_weight": (3 * hidden, hidden),
        "attention.in_proj_bias": (3 * hidden,),
        **linear_shapes("attention.out_proj", hidden, hidden, has_bias=True),
        **norm_shapes(("layernorm",), hidden, has_bias=True),
        **_layer_parts_shapes(tower),
    }
    return {f"{_TOWER}.head.{name}": shape for name, shape in head.items()}


# For the text half and for training.
_CLIP_HARMLESS = frozenset({"dropout", "initializer_factor", "projection_dim", "vocab_size"})
