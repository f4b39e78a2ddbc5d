"""Qwen2-VL and 2.5-VL: a tower for images of any size, and a Qwen2 that rotates by time, row and column.

Published files have the decoder's keys next to `vision_config`; transformers 5 puts them in `text_config`.

Source: transformers 5.5, `models/qwen2_vl/{configuration,modeling}_qwen2_vl.py` and those of `qwen2_5_vl`.
"""

from __future__ import annotations

import dataclasses
import functools

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.llama import gated_decoder, qwen_windows
from vinfer.checkpoint.families.reading import (
    SILU,
    layers_shapes,
    read_activation,
    read_heads,
    read_hidden_size,
    refuse_other_than,
)
from vinfer.checkpoint.families.vision_config import ACTIVATIONS
from vinfer.checkpoint.family import ONE_ROPE, Family, NormalisedConfig, TensorNames
from vinfer.checkpoint.image_processor import read_qwen2_vl_processing
from vinfer.checkpoint.key_check import refuse_unread_keys
from vinfer.checkpoint.layout import Shape, gated_mlp_shapes, linear_shapes, norm_shapes
from vinfer.checkpoint.rope.config import read_rope
from vinfer.checkpoint.vision import Qwen2VLFacts, VisionFacts

# Qwen2VLTextConfig's own defaults, where they differ from what every file must state.
_DEFAULTS: dict[str, object] = {"max_window_layers": 80, "rms_norm_eps": 1e-5}
_GATED = "qwen2_5_vl"
_NAMES = TensorNames(
    # Published files have `model.` and `visual.`; transformers 5 writes `model.visual.`, and inside it calls
    # the decoder `model.language_model.`.
    renamed=(("model.language_model.", "model."), ("model.visual.", "visual."))
)


def _qwen2_vl(keys: ConfigKeys) -> NormalisedConfig:
    model_type = keys.string("model_type")
    decoder = _decoder(keys, model_type)
    section = keys.section("vision_config")
    if section.string("model_type", model_type) != model_type:
        raise section.refusal("model_type", f"supported as the vision tower of {model_type}: {model_type}")
    read_tower = _gated_tower if model_type == _GATED else _tower
    tower = read_tower(section, out_size=decoder.facts.hidden_size)
    # For videos.
    refuse_unread_keys(section, frozenset({"tokens_per_second"} if tower.is_gated else ()))
    return dataclasses.replace(
        decoder,
        model_type=model_type,
        shapes={**decoder.shapes, **_tower_shapes(tower)},
        names=_NAMES,
        vision=VisionFacts(
            decoder_type=decoder.model_type,
            encoder=tower,
            image_token_id=keys.integer(
                "image_token_id", 151_655, minimum=0, maximum=decoder.facts.vocab_size - 1
            ),
            image_shape=None,
            read_processing=functools.partial(
                read_qwen2_vl_processing,
                patch_size=tower.patch_size,
                temporal_patch_size=tower.temporal_patch_size,
                merge_size=tower.merge_size,
            ),
        ),
    )


def _decoder(keys: ConfigKeys, model_type: str) -> NormalisedConfig:
    """Translate the decoder's keys as Qwen2's; its attention differs only in the positions."""
    text = keys
    if keys.has("text_config"):
        # transformers then reads nothing of the decoder outside it.
        text = keys.section("text_config")
        served = f"{model_type}_text"
        if text.string("model_type", served) != served:
            raise text.refusal("model_type", f"supported as the decoder of {model_type}: {served}")
    is_tied = keys.boolean("tie_word_embeddings", False)
    text = text.with_defaults(**_DEFAULTS).updated(tie_word_embeddings=is_tied)
    heads = read_heads(text, must_state_kv_heads=True)
    if heads.num_queries != read_hidden_size(text):
        raise text.refusal("head_dim", "must be hidden_size / num_attention_heads")
    rope = read_rope(
        text,
        head_dim=heads.head_dim,
        default_theta=1e6,
        renamed_types={"mrope": "default"},
        family_keys={"mrope_section"},
    )
    place = "rope_scaling" if text.values.get("rope_scaling") else "rope_parameters"
    if rope.rope_type in ("dynamic", "longrope"):
        # transformers' rotary embedding for it never updates its frequencies.
        raise text.refusal(place, f"{rope.rope_type} is unsupported for this family")
    decoder = gated_decoder(
        text,
        "qwen2",
        heads,
        windows=qwen_windows(text),
        has_bias=True,
        has_output_bias=False,
        rope=rope,
    )
    if keys.has("text_config"):
        refuse_unread_keys(text)
        keys.read_like(text)
    sections = _sections(text, place, num_pairs=heads.head_dim // 2)
    return dataclasses.replace(
        decoder, ropes={ONE_ROPE: rope}, facts=dataclasses.replace(decoder.facts, rope_sections=sections)
    )


def _sections(text: ConfigKeys, place: str, *, num_pairs: int) -> tuple[int, int, int]:
    stated = text.section(place)
    given = stated.values.get("mrope_section")
    if isinstance(given, list) and len(given) == 3:
        time, row, column = (n if isinstance(n, int) and not isinstance(n, bool) else -1 for n in given)
        if min(time, row, column) >= 0 and time + row + column == num_pairs:
            return time, row, column
    raise stated.refusal("mrope_section", f"must be three numbers of pairs, {num_pairs} in total")


def _tower(section: ConfigKeys, *, out_size: int) -> Qwen2VLFacts:
    _require_decoder_size(section, "hidden_size", out_size)
    num_layers = section.integer("depth", 32, maximum=1024)
    return _any_tower(
        section,
        num_layers=num_layers,
        hidden=section.integer("embed_dim", 1280, maximum=2**20),
        inner_factor=section.integer("mlp_ratio", 4, maximum=64),
        activation=read_activation(section, ACTIVATIONS, default="quick_gelu"),
        out_size=out_size,
        full_layers=tuple(range(num_layers)),
    )


def _gated_tower(section: ConfigKeys, *, out_size: int) -> Qwen2VLFacts:
    _require_decoder_size(section, "out_hidden_size", out_size)
    num_layers = section.integer("depth", 32, maximum=1024)
    full_layers = section.values.get("fullatt_block_indexes")
    if full_layers is None:
        full_layers = [7, 15, 23, 31]
    if not isinstance(full_layers, list) or any(type(layer) is not int for layer in full_layers):
        raise section.refusal("fullatt_block_indexes", "must be a list of layers")
    tower = _any_tower(
        section,
        num_layers=num_layers,
        hidden=section.integer("hidden_size", 3584, maximum=2**20),
        inner_factor=1,
        activation=read_activation(section, {**ACTIVATIONS, **SILU}, default="silu"),
        out_size=out_size,
        full_layers=tuple(layer for layer in range(num_layers) if layer in full_layers),
    )
    window_size = section.integer("window_size", 112, maximum=2**14) // tower.merge_size // tower.patch_size
    if window_size == 0:
        raise section.refusal("window_size", f"must hold a square of patches, {tower.factor} pixels")
    return dataclasses.replace(
        tower,
        is_gated=True,
        inner_size=section.integer("intermediate_size", 3420, maximum=2**22),
        window_size=window_size,
    )


def _any_tower(
    section: ConfigKeys,
    *,
    num_layers: int,
    hidden: int,
    inner_factor: int,
    activation: str,
    out_size: int,
    full_layers: tuple[int, ...],
) -> Qwen2VLFacts:
    """Read what both towers have in common."""
    # transformers does not read these and computes as if they had these values.
    refuse_other_than(section, {"in_chans": 3, "spatial_patch_size": section.integer("patch_size", 14)})
    num_heads = section.integer("num_heads", 16, maximum=2**16)
    if hidden % (4 * num_heads):
        raise section.refusal("num_heads", f"must divide hidden size {hidden} into multiples of 4")
    return Qwen2VLFacts(
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_size=hidden,
        inner_size=hidden * inner_factor,
        num_channels=section.integer("in_channels", 3, minimum=3, maximum=3),
        patch_size=section.integer("patch_size", 14, maximum=256),
        temporal_patch_size=section.integer("temporal_patch_size", 2, maximum=16),
        merge_size=section.integer("spatial_merge_size", 2, maximum=16),
        activation=activation,
        out_size=out_size,
        full_layers=full_layers,
    )


def _require_decoder_size(section: ConfigKeys, key: str, out_size: int) -> None:
    if section.integer(key, 3584) != out_size:
        raise section.refusal(key, f"must equal the decoder's hidden size, {out_size}")


def _tower_shapes(tower: Qwen2VLFacts) -> dict[str, Shape]:
    hidden, patch = tower.hidden_size, tower.patch_size
    merged = hidden * tower.merge_size**2
    has_bias = not tower.is_gated
    layer = {
        **linear_shapes("attn.qkv", 3 * hidden, hidden, has_bias=True),
        **linear_shapes("attn.proj", hidden, hidden, has_bias=True),
        **norm_shapes(("norm1", "norm2"), hidden, has_bias=has_bias),
    }
    if tower.is_gated:
        layer |= gated_mlp_shapes("mlp", hidden=hidden, inner=tower.inner_size, has_bias=True)
    else:
        layer |= linear_shapes("mlp.fc1", tower.inner_size, hidden, has_bias=True)
        layer |= linear_shapes("mlp.fc2", hidden, tower.inner_size, has_bias=True)
    return {
        "visual.patch_embed.proj.weight": (
            hidden,
            tower.num_channels,
            tower.temporal_patch_size,
            patch,
            patch,
        ),
        **layers_shapes("visual.blocks", layer, tower.num_layers),
        **norm_shapes(("visual.merger.ln_q",), hidden, has_bias=has_bias),
        **linear_shapes("visual.merger.mlp.0", merged, merged, has_bias=True),
        **linear_shapes("visual.merger.mlp.2", tower.out_size, merged, has_bias=True),
    }


FAMILIES = tuple(
    Family(
        model_type=model_type,
        architecture=architecture,
        translate=_qwen2_vl,
        # For videos, and what the chat template writes around an image.
        harmless=frozenset(
            {"video_token_id", "vision_end_token_id", "vision_start_token_id", "vision_token_id"}
        ),
    )
    for model_type, architecture in (
        ("qwen2_vl", "Qwen2VLForConditionalGeneration"),
        (_GATED, "Qwen2_5_VLForConditionalGeneration"),
    )
)
