"""LLaVA: one fact, one rule, one test; every layout of its tensor names."""

from __future__ import annotations

import dataclasses
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
from vinfer.checkpoint.vision import LlavaFacts
from vinfer.errors import CheckpointError

TEXT: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 10,
    "patch_size": 4,
}
LLAVA: dict[str, Any] = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "text_config": TEXT,
    "vision_config": VISION,
    "image_token_index": 258,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def encoder(**changes: Any) -> LlavaFacts:
    vision = normalise(LLAVA | changes).vision
    assert vision is not None
    assert isinstance(vision.encoder, LlavaFacts)
    return vision.encoder


def test_the_decoder_is_llama_under_its_own_rules() -> None:
    found = normalise(LLAVA)
    assert (found.model_type, found.facts.hidden_size, found.facts.is_tied) == ("llava", 32, False)
    assert found.vision is not None
    assert (found.vision.decoder_type, found.vision.image_token_id) == ("llama", 258)
    assert found.vision.image_shape == (3, 10, 10)
    assert found.shapes["lm_head.weight"] == (260, 32)
    assert found.shapes["vision_tower.vision_model.embeddings.patch_embedding.weight"] == (16, 3, 4, 4)
    # Two patches fit into a side of 10, and the class token has a position.
    assert found.shapes["vision_tower.vision_model.embeddings.position_embedding.weight"] == (5, 16)
    assert found.shapes["multi_modal_projector.linear_1.weight"] == (32, 16)


def test_what_published_files_leave_out_is_the_default_of_llama() -> None:
    facts = normalise(
        LLAVA | {"text_config": {"max_position_embeddings": 4096}, "image_token_index": 7}
    ).facts
    sizes = (facts.hidden_size, facts.num_layers, facts.num_kv_heads, facts.vocab_size, facts.num_positions)
    assert sizes == (4096, 32, 32, 32000, 4096)


@pytest.mark.parametrize(("outer", "inner"), [(True, False), (False, True)])
def test_either_config_ties_the_head(outer: bool, inner: bool) -> None:
    text = TEXT | {"tie_word_embeddings": inner}
    found = normalise(LLAVA | {"tie_word_embeddings": outer, "text_config": text})
    assert found.facts.is_tied
    assert "lm_head.weight" not in found.shapes


@pytest.mark.parametrize(
    ("layer", "expected"), [(-2, (2,)), (-1, (3,)), (1, (1,)), (0, (0,)), ([-2, 1], (2, 1)), (-4, (0,))]
)
def test_feature_layers_count_from_what_enters_the_first_one(layer: object, expected: object) -> None:
    found = encoder(vision_feature_layer=layer)
    assert found.feature_layers == expected


def test_several_layers_are_joined() -> None:
    shapes = normalise(LLAVA | {"vision_feature_layer": [-2, -1]}).shapes
    assert shapes["multi_modal_projector.linear_1.weight"] == (32, 2 * 16)


@pytest.mark.parametrize(("strategy", "num_features"), [("default", 4), ("full", 5)])
def test_the_class_token_is_a_feature_where_all_are_taken(strategy: str, num_features: int) -> None:
    assert encoder(vision_feature_select_strategy=strategy).num_features == num_features


def test_defaults() -> None:
    bare = {key: LLAVA[key] for key in ("model_type", "text_config", "vision_config")}
    vision = normalise(bare | {"text_config": TEXT | {"vocab_size": 32001}, "image_token_index": None}).vision
    assert vision is not None
    assert vision.image_token_id == 32000
    assert vision.encoder == dataclasses.replace(
        encoder(),
        feature_layers=(2,),
        projector_activation="gelu",
        projector_has_bias=True,
    )
    tower = encoder().tower
    assert (tower.activation, tower.norm_epsilon) == ("quick_gelu", 1e-5)


SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}


@pytest.mark.parametrize(("strategy", "num_features"), [("full", 4), ("default", 3)])
def test_siglip_has_patches_only(strategy: str, num_features: int) -> None:
    changes = {"vision_config": SIGLIP, "vision_feature_select_strategy": strategy}
    found = encoder(**changes)
    assert not found.tower.is_clip
    # transformers drops the first position, class token or not.
    assert found.num_features == num_features
    assert (found.tower.activation, found.tower.norm_epsilon) == ("gelu_pytorch_tanh", 1e-6)
    shapes = normalise(LLAVA | changes).shapes
    assert shapes["vision_tower.vision_model.embeddings.position_embedding.weight"] == (4, 16)


def test_the_decoder_may_be_qwen2_under_its_own_rules() -> None:
    text = {**TEXT, "model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True}
    found = normalise(LLAVA | {"text_config": text})
    assert found.vision is not None
    assert (found.vision.decoder_type, found.facts.num_kv_heads, found.facts.is_tied) == ("qwen2", 2, True)
    assert found.shapes["model.layers.0.self_attn.q_proj.bias"] == (32,)


VIPLLAVA = {
    **{key: LLAVA[key] for key in ("text_config", "vision_config", "image_token_index")},
    "model_type": "vipllava",
    "architectures": ["VipLlavaForConditionalGeneration"],
    "vision_feature_layers": [-1, 0],
}


def test_vipllava_joins_layers_and_normalises_them() -> None:
    found = normalise(VIPLLAVA)
    assert found.vision is not None
    facts = found.vision.encoder
    assert isinstance(facts, LlavaFacts)
    assert (facts.feature_layers, facts.num_features, facts.projector_norm_epsilon) == ((3, 0), 4, 1e-5)
    assert found.shapes["multi_modal_projector.projector_layernorm.weight"] == (32,)
    assert found.shapes["multi_modal_projector.linear_1.weight"] == (32, 32)
    deep = {**VISION, "num_hidden_layers": 12}
    defaults = normalise({**VIPLLAVA, "vision_config": deep, "vision_feature_layers": None}).vision
    assert defaults is not None
    assert isinstance(defaults.encoder, LlavaFacts)
    assert defaults.encoder.feature_layers == (11, 8, 5, 2, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision_feature_layers": [4]}, r"vision_feature_layers = \[4\]: must be layers from -4 to 3"),
        ({"vision_feature_layer": -2}, "vision_feature_layer = -2: vinfer does not know"),
        ({"vision_config": SIGLIP}, "supported as the vision tower: clip_vision_model"),
        ({"text_config": TEXT | {"model_type": "qwen2"}}, "supported as its decoder: llama$"),
        ({"projector_layernorm_eps": 0}, "projector_layernorm_eps = 0: must be finite"),
    ],
)
def test_what_vipllava_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(VIPLLAVA | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "has no text_config"),
        ({"text_config": [1]}, "text_config = .*must be an object"),
        (
            {"text_config": TEXT | {"model_type": "mistral"}},
            "text_config: model_type = 'mistral'.*decoder: llama and qwen2",
        ),
        ({"text_config": TEXT | {"odd_key": 1}}, "text_config: odd_key = 1: vinfer does not know"),
        ({"vision_config": VISION | {"odd_key": 1}}, "vision_config: odd_key = 1: vinfer does not know"),
        (
            {"vision_config": VISION | {"model_type": "dinov2"}},
            "supported as the vision tower: clip_vision_model and siglip_vision_model",
        ),
        ({"vision_config": VISION | {"num_attention_heads": 3}}, "must divide hidden_size = 16"),
        ({"vision_config": VISION | {"hidden_act": "relu6"}}, "hidden_act = 'relu6'"),
        ({"vision_feature_layer": 4}, "vision_feature_layer = 4: must be layers from -4 to 3"),
        ({"vision_feature_layer": []}, "vision_feature_layer"),
        ({"vision_feature_layer": [1, "2"]}, "vision_feature_layer"),
        ({"vision_feature_layer": True}, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "cls"}, "supported: default, full"),
        ({"image_token_index": 260}, "image_token_index = 260: must be an integer from 0 to 259"),
        ({"image_token_id": 257}, "image_token_id = 257: differs from image_token_index"),
        ({"odd_key": 1}, "odd_key = 1: vinfer does not know"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(LLAVA | changes)


@pytest.fixture
def write(tmp_path: Path, hf_directory: Callable[..., Path]) -> Callable[..., Path]:
    """Write a whole checkpoint; `rename` returns each tensor's name in the file."""

    def write_checkpoint(rename: Callable[[str], str], image_token: str = "<image>", **changes: Any) -> Path:
        directory = hf_directory()
        config = LLAVA | changes
        (directory / "config.json").write_text(json.dumps(config))
        generator = np.random.default_rng(3)
        shapes = normalise(config).shapes
        tensors = {
            rename(name): generator.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
        }
        # Old files have this buffer.
        tensors[rename("vision_tower.vision_model.embeddings.position_ids")] = np.arange(5)
        save_file(tensors, directory / "model.safetensors")
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.add_tokens([AddedToken(image_token, special=False)])
        tokenizer.save(str(directory / "tokenizer.json"))
        processor = {"image_processor_type": "CLIPImageProcessor", "size": 10, "crop_size": 10}
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))
        return directory

    return write_checkpoint


def published(name: str) -> str:
    return f"language_model.{name}" if name.startswith(("model.", "lm_head.")) else name


def inside(name: str) -> str:
    if name.startswith("lm_head."):
        return name
    return (
        f"model.language_model.{name.removeprefix('model.')}"
        if name.startswith("model.")
        else f"model.{name}"
    )


def as_saved(name: str) -> str:
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    return f"model.language_model.{name}" if name.startswith("model.") else f"model.{name}"


@pytest.mark.parametrize("layout", [published, inside, as_saved])
def test_every_layout_of_names_is_read(layout: Callable[[str], str], write: Callable[..., Path]) -> None:
    checkpoint = open_hf_directory(write(layout))
    assert set(checkpoint.tensor_names()) == set(normalise(LLAVA).shapes)
    assert checkpoint.image_processing is not None
    assert checkpoint.image_processing.placeholder.expand(2) == "<image><image>"


def test_the_placeholder_becomes_special(write: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = open_hf_directory(write(published))
    checkpoint.write_tokenizer(tmp_path / "tokenizer")
    special = json.loads((tmp_path / "tokenizer" / "special_tokens.json").read_text())
    assert special["additional_special_tokens"] == ["<image>"]


@pytest.mark.parametrize(
    ("image_token", "changes", "message"),
    [
        ("<photo>", {}, "no token '<image>'"),
        ("<image>", {"image_token_index": 257}, "image token 257; '<image>' is token 258"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(
    image_token: str, changes: dict[str, Any], message: str, write: Callable[..., Path]
) -> None:
    directory = write(published, image_token, **changes)
    with pytest.raises(CheckpointError, match=message):
        open_hf_directory(directory)
