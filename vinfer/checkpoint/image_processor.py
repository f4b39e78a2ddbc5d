"""Reads a checkpoint's image processor settings into a record (`vinfer.image_processing`).

Runs in the build half, on any thread. The settings stand in preprocessor_config.json or, since transformers
5, under `image_processor` of processor_config.json, which wins where both are there. A key that is neither
read nor known to change nothing stops the build, as in config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import pydantic

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.json_file import read_optional_json_object
from vinfer.errors import CheckpointError
from vinfer.image_processing import (
    MAX_SIDE,
    ClipProcessing,
    ImageProcessing,
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

_COMMON_KEYS = frozenset(
    {"do_normalize", "do_rescale", "do_resize", "image_mean", "image_std", "resample", "rescale_factor", "size"}
)
_HARMLESS_KEYS = frozenset(
    {
        # Names, of the class and of what it returns.
        "_processor_class",
        "_valid_processor_keys",
        "feature_extractor_type",
        "image_processor_type",
        "model_input_names",
        "processor_class",
        # How arrays are passed in and out, not what they hold.
        "data_format",
        "device",
        "disable_grouping",
        "input_data_format",
        "return_tensors",
    }
)
_OFF_KEYS: Mapping[str, tuple[object, ...]] = {
    "auto_map": ({},),
    "do_convert_rgb": (True,),
    "do_pan_and_scan": (False,),
    "pad_size": (),
    "size_divisor": (),
    "use_square_size": (False,),
}
"""Switches that are served only in these positions; null is always the default."""


def read_clip_processing(
    checkpoint: Path, *, patch_size: int, select_strategy: Literal["default", "full"]
) -> ClipProcessing:
    """Read the settings of a LLaVA checkpoint (`CLIPImageProcessor` or `LlavaImageProcessor`).

    Args:
        patch_size: of the vision tower, from config.json: the processor's own may be missing or stale.
        select_strategy: `vision_feature_select_strategy` of config.json, for the same reason.

    Raises:
        CheckpointError: a setting that is not served, or an impossible one.
    """
    keys, outer = _read(checkpoint, ("CLIPImageProcessor", "LlavaImageProcessor"))
    is_llava = _type(keys).startswith("Llava")
    # CLIP's own padding is to a fixed size, after everything else.
    own = {"crop_size", "do_center_crop", "do_pad"}
    _refuse_unknown(keys, own)
    if keys.boolean("do_pad", False) and not is_llava:
        raise keys.refusal("do_pad", "only false is served for CLIPImageProcessor")
    shortest_edge, resize_to = None, None
    if keys.boolean("do_resize", True):
        shortest_edge, resize_to = _edge_or_size(keys)
    if keys.boolean("do_center_crop", True):
        crop = _height_and_width(keys, "crop_size", (224, 224))
    elif resize_to is not None:
        crop = resize_to
    else:
        raise keys.refusal("do_center_crop", "only true is served, or a size of height and width: shapes vary")
    return _made(
        keys,
        lambda: ClipProcessing(
            resample=_resample(keys, _BICUBIC),
            values=_pixel_values(keys, CLIP_MEAN, CLIP_STD),
            placeholder=Placeholder(
                marker=outer.string("image_token", "<image>"), token=outer.string("image_token", "<image>")
            ),
            pad_to_square=keys.boolean("do_pad", False),
            shortest_edge=shortest_edge,
            resize_to=resize_to,
            crop=crop,
            num_image_tokens=clip_num_tokens(crop, patch_size, select_strategy),
        ),
    )
