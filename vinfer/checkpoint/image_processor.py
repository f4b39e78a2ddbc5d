"""Reads a checkpoint's image processor settings into a record (`vinfer.image_processing`).

Runs in the build half, on any thread. The settings are in preprocessor_config.json or, since transformers
5, under `image_processor` in processor_config.json, which wins if both exist. A key that is neither
read nor known to be harmless stops the build, as in config.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import pydantic

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.json_file import read_optional_json_object
from vinfer.errors import CheckpointError
from vinfer.image_processing import (
    MAX_SIDE,
    ClipProcessing,
    PixelValues,
    Placeholder,
    Qwen2VLProcessing,
    SiglipProcessing,
    Size,
    Triple,
    clip_num_tokens,
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
_BILINEAR, _BICUBIC = 2, 3

_Record = TypeVar("_Record", ClipProcessing, SiglipProcessing, Qwen2VLProcessing)

_COMMON_KEYS = frozenset(
    {
        "do_normalize",
        "do_rescale",
        "do_resize",
        "image_mean",
        "image_std",
        "resample",
        "rescale_factor",
        "size",
    }
)
_HARMLESS_KEYS = frozenset(
    {
        # Names of the class and of its outputs.
        "_processor_class",
        "_valid_processor_keys",
        "feature_extractor_type",
        "image_processor_type",
        "model_input_names",
        "processor_class",
        # How arrays are passed in and out, not what they hold.
        "data_format",
        "device",
        "do_convert_rgb",  # every image is already RGB
        "disable_grouping",
        "input_data_format",
        "return_tensors",
    }
)
_OFF_KEYS: Mapping[str, tuple[object, ...]] = {
    "auto_map": ({},),
    "do_pan_and_scan": (False,),
    "pad_size": (),
    "size_divisor": (),
    "use_square_size": (False,),
}
"""Switches that are supported only with these values; null always means the default."""


def read_clip_processing(
    checkpoint: Path,
    *,
    patch_size: int,
    select_strategy: Literal["default", "full"],
    num_additional_tokens: int = 1,
) -> ClipProcessing:
    """Read the settings of a LLaVA checkpoint (`CLIPImageProcessor`, `LlavaImageProcessor` or SigLIP's).

    Args:
        patch_size: the vision tower's, from config.json; the processor's own may be missing or stale.
        select_strategy: `vision_feature_select_strategy` of config.json, for the same reason.
        num_additional_tokens: tokens that the tower puts before the patches: CLIP's class token.

    Raises:
        CheckpointError: an unsupported or impossible setting.
    """
    keys, outer = _read(checkpoint, ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor"))
    is_llava, is_siglip = _type(keys).startswith("Llava"), _type(keys).startswith("Siglip")
    # CLIP's own padding is to a fixed size, as the last step.
    own = {"crop_size", "do_center_crop", "do_pad"}
    _refuse_unknown(keys, own)
    if keys.boolean("do_pad", False) and not is_llava:
        raise keys.refusal("do_pad", f"only false is supported for {_type(keys)}")
    mean, std = CLIP_MEAN, CLIP_STD
    if is_siglip:
        mean, std = SIGLIP_MEAN, SIGLIP_STD
        keys = keys.with_defaults(size={"height": 224, "width": 224}, do_center_crop=False)
    shortest_edge, resize_to = None, None
    if keys.boolean("do_resize", True):
        shortest_edge, resize_to = _edge_or_size(keys)
    if keys.boolean("do_center_crop", True):
        crop = _height_and_width(keys, "crop_size", (224, 224))
    elif resize_to is not None:
        crop = resize_to
    else:
        raise keys.refusal(
            "do_center_crop", "false is supported only if size has height and width: otherwise shapes vary"
        )
    image_token = outer.string("image_token", "<image>")
    return _made(
        keys,
        lambda: ClipProcessing(
            resample=_resample(keys, _BICUBIC),
            values=_pixel_values(keys, mean, std),
            placeholder=Placeholder(marker=image_token, repeated=image_token),
            pad_to_square=keys.boolean("do_pad", False),
            shortest_edge=shortest_edge,
            resize_to=resize_to,
            crop=crop,
            num_image_tokens=clip_num_tokens(crop, patch_size, select_strategy, num_additional_tokens),
        ),
    )


def read_siglip_processing(checkpoint: Path, *, mm_tokens_per_image: int) -> SiglipProcessing:
    """Read the settings of a Gemma 3 checkpoint (`Gemma3ImageProcessor`).

    Raises:
        CheckpointError: an unsupported setting, such as pan and scan, or an impossible one.
    """
    keys, outer = _read(checkpoint, ("Gemma3ImageProcessor",))
    # These have no effect while do_pan_and_scan is off.
    _refuse_unknown(
        keys,
        {
            "image_seq_length",
            "pan_and_scan_max_num_crops",
            "pan_and_scan_min_crop_size",
            "pan_and_scan_min_ratio_to_activate",
        },
    )
    for stated in (keys, outer):
        if stated.integer("image_seq_length", mm_tokens_per_image) != mm_tokens_per_image:
            raise stated.refusal(
                "image_seq_length", f"config.json has mm_tokens_per_image = {mm_tokens_per_image}"
            )
    if not keys.boolean("do_resize", True):
        raise keys.refusal("do_resize", "only true is supported: the encoder takes one size")
    return _made(
        keys,
        lambda: SiglipProcessing(
            resample=_resample(keys, _BILINEAR),
            values=_pixel_values(keys, SIGLIP_MEAN, SIGLIP_STD),
            # Gemma 3's processor writes these around each image, whatever the chat template does.
            placeholder=Placeholder(
                marker="<start_of_image>",
                before="\n\n<start_of_image>",
                repeated="<image_soft_token>",
                after="<end_of_image>\n\n",
            ),
            resize_to=_height_and_width(keys, "size", (224, 224)),
            num_image_tokens=mm_tokens_per_image,
        ),
    )


def read_qwen2_vl_processing(
    checkpoint: Path, *, patch_size: int, temporal_patch_size: int, merge_size: int
) -> Qwen2VLProcessing:
    """Read the settings of a Qwen2-VL checkpoint (`Qwen2VLImageProcessor`).

    Args:
        patch_size, temporal_patch_size, merge_size: of the vision tower, from config.json.

    Raises:
        CheckpointError: an unsupported or impossible setting, or patches that do not match the tower's.
    """
    keys, _ = _read(checkpoint, ("Qwen2VLImageProcessor",))
    _refuse_unknown(keys, {"max_pixels", "merge_size", "min_pixels", "patch_size", "temporal_patch_size"})
    if not keys.boolean("do_resize", True):
        raise keys.refusal("do_resize", "only true is supported: patches must tile the image")
    own = {"patch_size": (14, patch_size), "temporal_patch_size": (2, temporal_patch_size)}
    for key, (default, expected) in {**own, "merge_size": (2, merge_size)}.items():
        if keys.integer(key, default) != expected:
            raise keys.refusal(key, f"the vision tower of config.json has {expected}: they must be equal")
    min_pixels, max_pixels = _pixel_limits(keys)
    return _made(
        keys,
        lambda: Qwen2VLProcessing(
            resample=_resample(keys, _BICUBIC),
            values=_pixel_values(keys, CLIP_MEAN, CLIP_STD),
            # The chat template writes <|vision_start|> and <|vision_end|> around it.
            placeholder=Placeholder(marker="<|image_pad|>", repeated="<|image_pad|>"),
            patch_size=patch_size,
            temporal_patch_size=temporal_patch_size,
            merge_size=merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        ),
    )


def _read(checkpoint: Path, served: tuple[str, ...]) -> tuple[ConfigKeys, ConfigKeys]:
    """Return the image processor's settings and those of the processor that contains it."""
    outer = read_optional_json_object(checkpoint / "processor_config.json")
    nested = outer.get("image_processor")
    if nested is None:
        own = read_optional_json_object(checkpoint / "preprocessor_config.json")
        keys = ConfigKeys(own, "preprocessor_config.json")
    elif isinstance(nested, dict):
        keys = ConfigKeys(nested, "processor_config.json: image_processor")
    else:
        raise CheckpointError("processor_config.json: image_processor is not an object: download it again")
    if not keys.values:
        raise CheckpointError(
            f"{checkpoint} has no preprocessor_config.json and no image_processor in processor_config.json: "
            "a model with images needs one; download the checkpoint again"
        )
    if _type(keys) not in served:
        raise keys.refusal("image_processor_type", f"supported for this model: {' and '.join(served)}")
    return keys, ConfigKeys(outer, "processor_config.json")


def _type(keys: ConfigKeys) -> str:
    old = keys.string("feature_extractor_type", "").replace("FeatureExtractor", "ImageProcessor")
    name = keys.string("image_processor_type", old)
    # One processor has three names: for Pillow, for torchvision, and for either.
    return name.removesuffix("Fast").removesuffix("Pil")


def _refuse_unknown(keys: ConfigKeys, own: set[str]) -> None:
    for key, value in keys.values.items():
        if value is None or key in _COMMON_KEYS or key in own or key in _HARMLESS_KEYS:
            continue
        if value in _OFF_KEYS.get(key, ()):
            continue
        # A switch of another processor, and it is off.
        if value is False and key.startswith("do_"):
            continue
        reason = (
            "is unsupported" if key in _OFF_KEYS else "vinfer does not know this key of an image processor"
        )
        raise keys.refusal(key, f"{reason}: remove it if the model was trained without")


def _made(keys: ConfigKeys, make: Callable[[], _Record]) -> _Record:
    try:
        return make()
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(
            f"{keys.where}: {where or 'settings'}: {first['msg']}: download the checkpoint again"
        ) from error


def _resample(keys: ConfigKeys, default: int) -> int:
    return keys.integer("resample", default, minimum=0, maximum=5)


def _pixel_values(keys: ConfigKeys, mean: Triple, std: Triple) -> PixelValues:
    factor = keys.number("rescale_factor", 1 / 255) if keys.boolean("do_rescale", True) else None
    if not keys.boolean("do_normalize", True):
        return PixelValues(rescale_factor=factor)
    return PixelValues(
        rescale_factor=factor, mean=_triple(keys, "image_mean", mean), std=_triple(keys, "image_std", std)
    )


def _triple(keys: ConfigKeys, key: str, default: Triple) -> Triple:
    given = keys.values[key] if keys.has(key) else list(default)
    if isinstance(given, list) and len(given) == 3:
        numbers = [float(n) for n in given if isinstance(n, int | float) and math.isfinite(n)]
        if len(numbers) == 3:
            return numbers[0], numbers[1], numbers[2]
    raise keys.refusal(key, "must be a list of three numbers, one per color")


def _side(keys: ConfigKeys, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        raise keys.refusal(key, f"sides must be integers from 1 to {MAX_SIDE}")
    return value


def _height_and_width(keys: ConfigKeys, key: str, default: Size) -> Size:
    """Read `{height, width}`, or one number for both."""
    value = keys.values[key] if keys.has(key) else {"height": default[0], "width": default[1]}
    if not isinstance(value, dict):
        side = _side(keys, key, value)
        return side, side
    if set(value) != {"height", "width"}:
        raise keys.refusal(key, "must have height and width")
    return _side(keys, key, value["height"]), _side(keys, key, value["width"])


def _edge_or_size(keys: ConfigKeys) -> tuple[int | None, Size | None]:
    """Read CLIP's `size`: `{shortest_edge}`, or one number for it, or `{height, width}`."""
    value = keys.values["size"] if keys.has("size") else 224
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        return None, _height_and_width(keys, "size", (224, 224))
    if isinstance(value, dict):
        if set(value) != {"shortest_edge"}:
            raise keys.refusal("size", "must have shortest_edge, or height and width")
        value = value["shortest_edge"]
    return _side(keys, "size", value), None


def _pixel_limits(keys: ConfigKeys) -> tuple[int, int]:
    """Read Qwen2-VL's limits: `min_pixels` and `max_pixels`, or `size`, whose edges are areas too."""
    size = keys.values["size"] if keys.has("size") else {}
    if not isinstance(size, dict) or not set(size) <= {
        "shortest_edge",
        "longest_edge",
        "min_pixels",
        "max_pixels",
    }:
        raise keys.refusal("size", "must have shortest_edge and longest_edge")
    areas = ConfigKeys(size, f"{keys.where}: size")
    # As in transformers, keys outside `size` win, and the pixel keys inside `size` are not read then.
    is_old = "shortest_edge" not in size and "longest_edge" not in size
    if size and is_old and not (keys.has("min_pixels") and keys.has("max_pixels")):
        raise keys.refusal("size", "must have shortest_edge and longest_edge")
    shortest = areas.integer("shortest_edge", 56 * 56)
    longest = areas.integer("longest_edge", 28 * 28 * 1280)
    min_pixels, max_pixels = keys.integer("min_pixels", shortest), keys.integer("max_pixels", longest)
    if min_pixels > max_pixels:
        raise keys.refusal("size", f"min_pixels = {min_pixels} exceeds max_pixels = {max_pixels}")
    return min_pixels, max_pixels
