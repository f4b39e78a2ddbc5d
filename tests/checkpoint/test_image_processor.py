"""Published and transformers 5 processor files become records; unsupported settings are named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vinfer.checkpoint.image_processor import (
    CLIP_MEAN,
    CLIP_STD,
    read_clip_processing,
    read_qwen2_vl_processing,
    read_siglip_processing,
)
from vinfer.errors import CheckpointError
from vinfer.image_processing import IMAGE_PROCESSING, ClipProcessing, Qwen2VLProcessing, num_tokens

MEAN, STD = list(CLIP_MEAN), list(CLIP_STD)

# As published with llava-hf/llava-1.5-7b-hf, google/gemma-3-4b-it and Qwen/Qwen2-VL-2B-Instruct.
LLAVA: dict[str, Any] = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "CLIPImageProcessor",
    "image_std": STD,
    "processor_class": "LlavaProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
GEMMA: dict[str, Any] = {
    "do_convert_rgb": None,
    "do_normalize": True,
    "do_pan_and_scan": None,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 256,
    "image_std": [0.5, 0.5, 0.5],
    "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None,
    "pan_and_scan_min_ratio_to_activate": None,
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 896, "width": 896},
}
QWEN: dict[str, Any] = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": MEAN,
    "image_std": STD,
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}


def written(path: Path, settings: Mapping[str, Any], **outer: Any) -> Path:
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    if outer:
        (path / "processor_config.json").write_text(json.dumps(outer))
    return path


def read_llava(path: Path) -> ClipProcessing:
    return read_clip_processing(path, patch_size=14, select_strategy="default")


def read_qwen(path: Path, **changes: int) -> Qwen2VLProcessing:
    tower = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2} | changes
    return read_qwen2_vl_processing(path, **tower)


def test_llava_is_read(tmp_path: Path) -> None:
    record = read_llava(written(tmp_path, LLAVA, image_token="<img>"))
    assert (record.shortest_edge, record.crop, record.num_image_tokens) == (336, (336, 336), 576)
    assert record.placeholder.expand(2) == "<img><img>"
    assert IMAGE_PROCESSING.validate_json(record.model_dump_json()) == record


def test_llava_counts_the_class_token_where_it_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path, LLAVA)
    assert read_clip_processing(path, patch_size=14, select_strategy="full").num_image_tokens == 577


def test_llava_with_siglip_is_read(tmp_path: Path) -> None:
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}}
    record = read_clip_processing(
        written(tmp_path, settings), patch_size=14, select_strategy="full", num_additional_tokens=0
    )
    assert (record.resize_to, record.crop, record.resample) == ((384, 384), (384, 384), 3)
    assert (record.values.mean, record.num_image_tokens) == ((0.5, 0.5, 0.5), 27 * 27)


def test_gemma_is_read(tmp_path: Path) -> None:
    record = read_siglip_processing(written(tmp_path, GEMMA), mm_tokens_per_image=256)
    assert record.resize_to == (896, 896)
    assert record.placeholder.expand(1) == "\n\n<start_of_image><image_soft_token><end_of_image>\n\n"
    assert num_tokens(record, (1, 5000)) == 256
    assert IMAGE_PROCESSING.validate_json(record.model_dump_json()) == record


def test_qwen_is_read(tmp_path: Path) -> None:
    record = read_qwen(written(tmp_path, QWEN))
    assert (record.min_pixels, record.max_pixels, record.resample) == (3136, 12845056, 3)
    assert num_tokens(record, (1, 1)) == 4
    assert num_tokens(record.with_max_pixels(28 * 28 * 9), (280, 280)) == 9
    assert IMAGE_PROCESSING.validate_json(record.model_dump_json()) == record


@pytest.mark.torch
@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"min_pixels": None, "max_pixels": None}, (3136, 1003520)),
        ({"size": {"shortest_edge": 5000, "longest_edge": 60000}}, (3136, 12845056)),
        (
            {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 5000, "longest_edge": 60000}},
            (5000, 60000),
        ),
        ({"size": {"min_pixels": 1, "max_pixels": 2}}, (3136, 12845056)),
    ],
)
def test_limits_of_qwen_are_those_of_transformers(
    tmp_path: Path, changes: dict[str, Any], limits: tuple[int, int]
) -> None:
    transformers = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    settings = {key: value for key, value in {**QWEN, **changes}.items() if value is not None}
    record = read_qwen(written(tmp_path, settings))
    assert (record.min_pixels, record.max_pixels) == limits
    if "size" in settings:
        settings["size"] = dict(settings["size"])
    else:
        settings["size"] = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    reference = transformers.Qwen2VLImageProcessorPil(**settings)
    assert (reference.size["shortest_edge"], reference.size["longest_edge"]) == limits


def test_the_nested_settings_of_transformers_5_win(tmp_path: Path) -> None:
    nested = {**LLAVA, "image_processor_type": "LlavaImageProcessorFast", "do_pad": True, "resample": 2}
    record = read_llava(written(tmp_path, LLAVA, image_processor=nested))
    assert (record.pad_to_square, record.resample) == (True, 2)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({**LLAVA, "do_pad": True}, "do_pad"),
        ({**LLAVA, "size": {"shortest_edge": 336, "longest_edge": 500}}, "size = "),
        ({**LLAVA, "size": {"shortest_edge": 0}}, "size = "),
        ({**LLAVA, "crop_size": {"height": 336}}, "crop_size"),
        ({**LLAVA, "resample": 6}, "resample = 6"),
        ({**LLAVA, "image_std": [0.5, 0.5, 0]}, "std"),
        ({**LLAVA, "image_mean": [0.5, 0.5]}, "image_mean"),
        ({**LLAVA, "do_center_crop": False}, "do_center_crop"),
        ({**LLAVA, "image_grid_pinpoints": [[336, 672]]}, "image_grid_pinpoints"),
        ({**LLAVA, "image_processor_type": "LlavaNextImageProcessor"}, "LlavaNextImageProcessor"),
        ({**LLAVA, "auto_map": {"AutoImageProcessor": "x.Y"}}, "auto_map"),
    ],
)
def test_what_is_not_served_is_named(tmp_path: Path, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_llava(written(tmp_path, settings))


def test_gemma_with_pan_and_scan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do_pan_and_scan"):
        read_siglip_processing(written(tmp_path, {**GEMMA, "do_pan_and_scan": True}), mm_tokens_per_image=256)
    with pytest.raises(CheckpointError, match="image_seq_length"):
        read_siglip_processing(written(tmp_path, GEMMA), mm_tokens_per_image=64)


def test_a_checkpoint_without_processor_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        read_qwen(tmp_path)


@pytest.mark.parametrize("key", ["patch_size", "temporal_patch_size", "merge_size"])
def test_patches_that_the_tower_does_not_take_are_refused(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, {name: value for name, value in QWEN.items() if name != key})
    assert read_qwen(path).factor == 28
    with pytest.raises(CheckpointError, match=f"{key} = None: the vision tower of config.json has 4"):
        read_qwen(path, **{key: 4})
