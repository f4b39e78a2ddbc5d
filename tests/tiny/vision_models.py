"""Tiny random checkpoints of families with images. Imports neither torch nor transformers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tiny.models import SIZES, TinyModel

from vinfer.image_processing import ClipProcessing, PixelValues, Placeholder

IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_ID = 258
NUM_TOKENS_WITH_IMAGE = 259
IMAGE_SIZE, PATCH_SIZE = 30, 6
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": IMAGE_SIZE},
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
}
PROCESSING = ClipProcessing(
    resample=_PROCESSOR["resample"],
    values=PixelValues(mean=tuple(_PROCESSOR["image_mean"]), std=tuple(_PROCESSOR["image_std"])),
    placeholder=Placeholder(marker=IMAGE_TOKEN, repeated=IMAGE_TOKEN),
    shortest_edge=IMAGE_SIZE,
    crop=(IMAGE_SIZE, IMAGE_SIZE),
    num_image_tokens=NUM_IMAGE_TOKENS,
)
"""What vinfer makes of it."""
_NO_SIZES: dict[str, Any] = dict.fromkeys(SIZES, ...)

VISION_MODELS = {
    "llava": TinyModel(
        "Llava",
        90,
        {
            **_NO_SIZES,
            "text_config": {
                **SIZES,
                "model_type": "llama",
                "num_hidden_layers": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
            },
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
            },
            "image_token_index": IMAGE_TOKEN_ID,
        },
        model_class="LlavaForConditionalGeneration",
        special_tokens=(IMAGE_TOKEN,),
        files={"preprocessor_config.json": json.dumps(_PROCESSOR), "chat_template.jinja": _TEMPLATE},
    ),
}
TRAINED_MODELS = {"llava-colours": dataclasses.replace(VISION_MODELS["llava"], is_trained=True)}
"""The same, trained by `tiny.colours`."""
