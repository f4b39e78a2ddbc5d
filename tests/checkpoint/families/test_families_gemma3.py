"""Gemma 3 with images: one fact, one rule, one test; what its processor and its decoder must agree on."""

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
from vinfer.checkpoint.vision import Gemma3Facts
from vinfer.errors import CheckpointError
from vinfer.image_processing import SiglipProcessing

TEXT: dict[str, Any] = {
    "model_type": "gemma3_text",
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 5,
    "max_position_embeddings": 128,
}
VISION: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 26,
    "patch_size": 4,
    "vision_use_head": False,
}
GEMMA3: dict[str, Any] = {
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": TEXT,
    "vision_config": VISION,
    "boi_token_index": 258,
    "image_token_index": 259,
    "eoi_token_index": 260,
    "mm_tokens_per_image": 9,
}
TOWER = "vision_tower.vision_model"


def encoder(**changes: Any) -> Gemma3Facts:
    vision = normalise(GEMMA3 | changes).vision
    assert vision is not None
    assert isinstance(vision.encoder, Gemma3Facts)
    return vision.encoder


def test_the_decoder_is_that_of_text_models_under_its_own_rules() -> None:
    found = normalise(GEMMA3)
    assert (found.model_type, found.facts.hidden_size, found.facts.is_tied) == ("gemma3", 32, True)
    assert found.facts.windows == (5, 5, 5, 5, 5, None)
    assert set(found.ropes) == {"full_attention", "sliding_attention"}
    assert "lm_head.weight" not in found.shapes


def test_an_image_is_seen_whole_and_both_ways() -> None:
    vision = normalise(GEMMA3).vision
    assert vision is not None
    assert vision.attends_both_ways
    assert (vision.decoder_type, vision.image_token_id) == ("gemma3_text", 259)
    assert vision.image_shape == (3, 26, 26)
    # Six patches fit into a side of 26; each feature is the mean of a 2 by 2 square.
    facts = encoder()
    assert (facts.tower.patches_per_side, facts.features_per_side, facts.num_features) == (6, 3, 9)


def test_tensors_of_the_image_half() -> None:
    shapes = normalise(GEMMA3).shapes
    assert shapes[f"{TOWER}.embeddings.patch_embedding.bias"] == (16,)
    assert shapes[f"{TOWER}.embeddings.position_embedding.weight"] == (36, 16)
    assert shapes["multi_modal_projector.mm_input_projection_weight"] == (16, 32)
    assert shapes["multi_modal_projector.mm_soft_emb_norm.weight"] == (16,)
    assert not [name for name in shapes if "class_embedding" in name or "pre_layrnorm" in name]


def test_files_of_a_tower_with_its_head_have_it() -> None:
    with_head = {key: value for key, value in VISION.items() if key != "vision_use_head"}
    shapes = normalise(GEMMA3 | {"vision_config": with_head}).shapes
    assert shapes[f"{TOWER}.head.probe"] == (1, 1, 16)
    assert shapes[f"{TOWER}.head.attention.in_proj_weight"] == (48, 16)
    assert not [name for name in normalise(GEMMA3).shapes if ".head." in name]


def test_what_published_files_leave_out_is_the_default_of_gemma3() -> None:
    bare = {"model_type": "gemma3", "text_config": {"sliding_window": 1024}, "vision_config": VISION}
    found = normalise(bare | {"mm_tokens_per_image": 4})
    facts = found.facts
    sizes = (
        facts.hidden_size,
        facts.num_layers,
        facts.num_attention_heads,
        facts.num_kv_heads,
        facts.key_dim,
    )
    assert sizes == (2304, 26, 8, 4, 256)
    assert (facts.vocab_size, facts.num_positions, facts.is_tied) == (262_208, 131_072, True)
    assert found.vision is not None
    assert found.vision.image_token_id == 262_144
    tower = encoder().tower
    assert (tower.activation, tower.norm_epsilon) == ("gelu_pytorch_tanh", 1e-6)


@pytest.mark.parametrize(("outer", "inner", "is_tied"), [(False, True, False), (None, False, True)])
def test_only_the_outer_config_ties_the_head(outer: bool | None, inner: bool, is_tied: bool) -> None:
    text = TEXT | {"tie_word_embeddings": inner}
    found = normalise(GEMMA3 | {"tie_word_embeddings": outer, "text_config": text})
    assert found.facts.is_tied == is_tied
    assert ("lm_head.weight" in found.shapes) == (not is_tied)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "has no text_config"),
        ({"vision_config": None}, "has no vision_config"),
        ({"text_config": TEXT | {"model_type": "llama"}}, "text_config: model_type = 'llama'.*gemma3_text"),
        ({"text_config": TEXT | {"odd_key": 1}}, "text_config: odd_key = 1: vinfer does not know"),
        (
            {"text_config": TEXT | {"final_logit_softcapping": 30.0}},
            "final_logit_softcapping = 30.*ignores it",
        ),
        ({"text_config": TEXT | {"use_bidirectional_attention": True}}, "use_bidirectional_attention"),
        ({"vision_config": VISION | {"odd_key": 1}}, "vision_config: odd_key = 1: vinfer does not know"),
        (
            {"vision_config": VISION | {"model_type": "clip_vision_model"}},
            "supported as the vision tower: siglip_vision_model",
        ),
        ({"vision_config": VISION | {"vision_use_head": 1}}, "vision_use_head = 1: must be true or false"),
        ({"mm_tokens_per_image": 8}, "mm_tokens_per_image = 8: must be the square of a divisor of 6"),
        ({"mm_tokens_per_image": 16}, "mm_tokens_per_image = 16: must be the square of a divisor of 6"),
        ({"mm_tokens_per_image": 49}, "mm_tokens_per_image = 49: must be an integer from 1 to 36"),
        ({"image_token_index": 264}, "image_token_index = 264: must be an integer from 0 to 263"),
        ({"image_token_id": 258}, "image_token_id = 258: differs from image_token_index"),
        ({"odd_key": 1}, "odd_key = 1: vinfer does not know"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(GEMMA3 | changes)


@pytest.fixture
def write(tmp_path: Path, hf_directory: Callable[..., Path]) -> Callable[..., Path]:
    """Write a whole checkpoint; `rename` returns each tensor's name in the file."""

    def write_checkpoint(rename: Callable[[str], str] = published, **processor: Any) -> Path:
        directory = hf_directory()
        (directory / "config.json").write_text(json.dumps(GEMMA3))
        generator = np.random.default_rng(3)
        tensors = {
            rename(name): generator.standard_normal(shape, dtype=np.float32)
            for name, shape in normalise(GEMMA3).shapes.items()
        }
        save_file(tensors, directory / "model.safetensors")
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        names = ("<start_of_image>", "<image_soft_token>", "<end_of_image>")
        tokenizer.add_tokens([AddedToken(name, special=False) for name in names])
        tokenizer.save(str(directory / "tokenizer.json"))
        settings = {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 26, "width": 26},
            "image_seq_length": 9,
        }
        (directory / "preprocessor_config.json").write_text(json.dumps(settings | processor))
        return directory

    return write_checkpoint


def published(name: str) -> str:
    return f"language_model.{name}" if name.startswith("model.") else name


def inside(name: str) -> str:
    return (
        f"model.language_model.{name.removeprefix('model.')}"
        if name.startswith("model.")
        else f"model.{name}"
    )


def as_saved(name: str) -> str:
    return f"model.language_model.{name}" if name.startswith("model.") else f"model.{name}"


@pytest.mark.parametrize("layout", [published, inside, as_saved])
def test_every_layout_of_names_is_read(layout: Callable[[str], str], write: Callable[..., Path]) -> None:
    checkpoint = open_hf_directory(write(layout))
    assert set(checkpoint.tensor_names()) == set(normalise(GEMMA3).shapes)
    processing = checkpoint.image_processing
    assert isinstance(processing, SiglipProcessing)
    assert (processing.resize_to, processing.num_image_tokens) == ((26, 26), 9)


def test_all_tokens_of_an_image_become_special(write: Callable[..., Path], tmp_path: Path) -> None:
    open_hf_directory(write()).write_tokenizer(tmp_path / "tokenizer")
    special = json.loads((tmp_path / "tokenizer" / "special_tokens.json").read_text())
    tokens = {"<start_of_image>", "<image_soft_token>", "<end_of_image>"}
    assert set(special["additional_special_tokens"]) == tokens


def test_a_tokenizer_that_lacks_one_is_refused(write: Callable[..., Path]) -> None:
    directory = write()
    file = directory / "tokenizer.json"
    file.write_text(file.read_text().replace("<end_of_image>", "<end>"))
    with pytest.raises(CheckpointError, match="no token '<end_of_image>', which images need"):
        open_hf_directory(directory)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"size": {"height": 26, "width": 28}},
            r"makes images of size \(26, 28\), but the tower.*\(26, 26\)",
        ),
        ({"image_seq_length": 16}, "image_seq_length = 16: config.json has mm_tokens_per_image = 9"),
        ({"do_pan_and_scan": True}, "do_pan_and_scan = True: is unsupported"),
    ],
)
def test_a_processor_of_another_model_is_refused(
    settings: dict[str, Any], message: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_hf_directory(write(**settings))
