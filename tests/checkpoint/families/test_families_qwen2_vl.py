"""Qwen2-VL: one fact, one rule, one test; every layout of its config and of its tensor names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer

from vinfer.checkpoint.hf.directory import open_hf_directory
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.vision import Qwen2VLFacts
from vinfer.errors import CheckpointError
from vinfer.image_processing import Qwen2VLProcessing

TEXT: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
ROPE = {"type": "mrope", "mrope_section": [1, 1, 2]}
VISION: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 16,
    "hidden_size": 32,
    "mlp_ratio": 3,
    "num_heads": 2,
    "patch_size": 6,
}
TOP: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "vision_config": VISION,
    "image_token_id": 258,
}
QWEN2_VL = TOP | TEXT | {"rope_scaling": ROPE}
NESTED = TOP | {
    "text_config": TEXT
    | {
        "model_type": "qwen2_vl_text",
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    },
    "vision_config": VISION | {"model_type": "qwen2_vl"},
}


GATED_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 20,
    "num_heads": 2,
    "patch_size": 6,
    "window_size": 30,
    "fullatt_block_indexes": [1, 7],
}
QWEN2_5_VL = QWEN2_VL | {
    "model_type": "qwen2_5_vl",
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "vision_config": GATED_VISION,
}


def encoder(config: dict[str, Any]) -> Qwen2VLFacts:
    vision = normalise(config).vision
    assert vision is not None
    assert isinstance(vision.encoder, Qwen2VLFacts)
    return vision.encoder


def test_the_decoder_is_qwen2_that_rotates_by_three_positions() -> None:
    found = normalise(QWEN2_VL)
    assert (found.model_type, found.facts.hidden_size, found.facts.is_tied) == ("qwen2_vl", 32, False)
    assert found.facts.rope_sections == (1, 1, 2)
    assert (found.ropes["default"].theta, found.ropes["default"].rope_type) == (1e6, "default")
    # Qwen2VLTextConfig's default, not Qwen2's.
    assert found.config["rms_norm_eps"] == 1e-5
    assert found.vision is not None
    assert (found.vision.decoder_type, found.vision.image_token_id) == ("qwen2", 258)
    assert found.vision.image_shape is None


def test_the_tower() -> None:
    tower = encoder(QWEN2_VL)
    assert (tower.inner_size, tower.factor, tower.temporal_patch_size) == (48, 12, 2)
    assert tower.activation == "quick_gelu"
    # 4 by 3 squares of two by two patches.
    assert tower.max_features((3, 48, 36)) == 12
    shapes = normalise(QWEN2_VL).shapes
    assert shapes["visual.patch_embed.proj.weight"] == (16, 3, 2, 6, 6)
    assert shapes["visual.merger.mlp.2.weight"] == (32, 64)


def test_the_gated_tower() -> None:
    tower = encoder(QWEN2_5_VL)
    assert (tower.is_gated, tower.inner_size, tower.activation) == (True, 20, "silu")
    # Two squares of 12 pixels fit into a window of 30; there is no eighth layer.
    assert (tower.window_size, tower.full_layers) == (2, (1,))
    shapes = normalise(QWEN2_5_VL).shapes
    assert shapes["visual.blocks.2.mlp.gate_proj.bias"] == (20,)
    assert "visual.blocks.2.norm1.bias" not in shapes
    assert "visual.merger.ln_q.bias" not in shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_config": GATED_VISION | {"out_hidden_size": 16}}, "out_hidden_size = 16: must equal the"),
        ({"vision_config": GATED_VISION | {"fullatt_block_indexes": 7}}, "must be a list of layers"),
        ({"vision_config": GATED_VISION | {"fullatt_block_indexes": ["1"]}}, "must be a list of layers"),
        ({"vision_config": GATED_VISION | {"window_size": 11}}, "window_size = 11: must hold a square"),
        ({"vision_config": GATED_VISION | {"embed_dim": 16}}, "embed_dim = 16: vinfer does not know"),
        ({"vision_config": GATED_VISION | {"model_type": "qwen2_vl"}}, "tower of qwen2_5_vl: qwen2_5_vl"),
        ({"text_config": TEXT | {"model_type": "qwen2_vl_text"}}, "decoder of qwen2_5_vl: qwen2_5_vl_text"),
    ],
)
def test_what_is_refused_of_the_gated_tower(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(QWEN2_5_VL | changes)


def test_both_forms_of_a_config_say_the_same() -> None:
    flat, nested = normalise(QWEN2_VL), normalise(NESTED)
    assert (nested.facts, nested.ropes, nested.shapes) == (flat.facts, flat.ropes, flat.shapes)
    assert nested.config == flat.config
    assert encoder(NESTED) == encoder(QWEN2_VL)


def test_only_the_outer_config_ties_the_head() -> None:
    assert normalise(NESTED | {"tie_word_embeddings": True}).facts.is_tied
    inner = NESTED["text_config"] | {"tie_word_embeddings": True}
    assert not normalise(NESTED | {"text_config": inner}).facts.is_tied


def test_yarn_goes_with_sections() -> None:
    rope = ROPE | {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    found = normalise(QWEN2_VL | {"rope_scaling": rope})
    assert (found.ropes["default"].rope_type, found.facts.rope_sections) == ("yarn", (1, 1, 2))


def test_windows_begin_at_the_layer_that_says_so() -> None:
    sliding = {"use_sliding_window": True, "sliding_window": 7}
    assert normalise(QWEN2_VL | sliding).facts.windows == (None, None)
    assert normalise(QWEN2_VL | sliding | {"max_window_layers": 1}).facts.windows == (None, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"odd_key": 1}, "odd_key = 1: vinfer does not know"),
        ({"vision_config": VISION | {"odd_key": 1}}, "vision_config: odd_key = 1: vinfer does not know"),
        ({"vision_config": None}, "has no vision_config"),
        (
            {"vision_config": VISION | {"hidden_size": 16}},
            "hidden_size = 16: must equal the decoder's hidden size, 32",
        ),
        ({"vision_config": VISION | {"num_heads": 3}}, "must divide hidden size 16 into multiples of 4"),
        ({"vision_config": VISION | {"num_heads": 8}}, "must divide hidden size 16 into multiples of 4"),
        ({"vision_config": VISION | {"hidden_act": "relu6"}}, "hidden_act = 'relu6'"),
        ({"vision_config": VISION | {"in_chans": 4}}, "in_chans = 4: only 3"),
        ({"vision_config": VISION | {"in_channels": 1}}, "in_channels = 1"),
        ({"vision_config": VISION | {"spatial_patch_size": 14}}, "spatial_patch_size = 14: only 6"),
        ({"vision_config": VISION | {"model_type": "qwen2_5_vl"}}, "tower of qwen2_vl: qwen2_vl"),
        ({"text_config": TEXT | {"model_type": "qwen2"}}, "decoder of qwen2_vl: qwen2_vl_text"),
        ({"text_config": TEXT | {"odd_key": 1}}, "text_config: odd_key = 1: vinfer does not know"),
        ({"image_token_id": 260}, "image_token_id = 260: must be an integer from 0 to 259"),
        ({"head_dim": 16}, "head_dim = 16: must be hidden_size / num_attention_heads"),
        ({"rope_scaling": None}, "has no rope_parameters"),
        ({"rope_scaling": {"type": "mrope"}}, "mrope_section = None: must be three numbers of pairs, 4"),
        ({"rope_scaling": ROPE | {"mrope_section": [1, 1, 1]}}, "mrope_section"),
        ({"rope_scaling": ROPE | {"mrope_section": [1, 3]}}, "mrope_section"),
        ({"rope_scaling": ROPE | {"mrope_section": [-1, 3, 2]}}, "mrope_section"),
        ({"rope_scaling": ROPE | {"mrope_section": ["1", 1, 2]}}, "mrope_section"),
        ({"rope_scaling": ROPE | {"type": "dynamic", "factor": 2.0}}, "dynamic is unsupported"),
        (
            {"model_type": "qwen3_vl"},
            "model_type = 'qwen3_vl': it takes images or sound of an unsupported kind",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(QWEN2_VL | changes)


PAD = "<|image_pad|>"


@pytest.fixture
def write(hf_directory: Callable[..., Path]) -> Callable[..., Path]:
    """Write a whole checkpoint; `rename` gives each tensor the name that it has in the file."""

    def write_checkpoint(rename: Callable[[str], str], **processor: Any) -> Path:
        directory = hf_directory()
        (directory / "config.json").write_text(json.dumps(QWEN2_VL))
        generator = np.random.default_rng(3)
        shapes = normalise(QWEN2_VL).shapes
        save_file(
            {
                rename(name): generator.standard_normal(shape, dtype=np.float32)
                for name, shape in shapes.items()
            },
            directory / "model.safetensors",
        )
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.add_tokens([AddedToken(PAD, special=True)])
        tokenizer.save(str(directory / "tokenizer.json"))
        settings = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 6, **processor}
        (directory / "preprocessor_config.json").write_text(json.dumps(settings))
        return directory

    return write_checkpoint


def published(name: str) -> str:
    return name


def as_saved(name: str) -> str:
    return f"model.{name}" if name.startswith("visual.") else name


def inside(name: str) -> str:
    if name.startswith("model."):
        return f"model.language_model.{name.removeprefix('model.')}"
    return as_saved(name)


@pytest.mark.parametrize("layout", [published, as_saved, inside])
def test_every_layout_of_names_is_read(layout: Callable[[str], str], write: Callable[..., Path]) -> None:
    checkpoint = open_hf_directory(write(layout))
    assert set(checkpoint.tensor_names()) == set(normalise(QWEN2_VL).shapes)
    record = checkpoint.image_processing
    assert isinstance(record, Qwen2VLProcessing)
    assert (record.factor, record.placeholder.expand(2)) == (12, PAD + PAD)


def test_a_processor_of_other_patches_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"merge_size = 3: the vision tower of config.json has 2"):
        open_hf_directory(write(published, merge_size=3))
