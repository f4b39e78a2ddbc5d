"""Tiny random checkpoints of image families. Imports neither torch nor transformers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tiny.models import SIZES, TinyModel

from vinfer.image_processing import ClipProcessing, PixelValues, Placeholder

_NO_SIZES: dict[str, Any] = dict.fromkeys(SIZES, ...)
_FIRST_ID = 258
"""Id of the first token beyond BOS and EOS."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionModel:
    """A tiny random checkpoint that takes images.

    Attributes:
        special_tokens: tokens of its tokenizer for images.
        image_token: the placeholder, one of `special_tokens`.
        before, after: ids of the tokens that the processor writes around an image's placeholders.
        image_size: side of an image at the encoder's input, in pixels.
        num_image_tokens: number of placeholders of an image.
        processor: preprocessor_config.json.
        template: the chat template.
        grids: rows and columns of the placeholders of variable-size images, the largest first;
            `image_size` and `num_image_tokens` describe that one. Empty if all images have one size.
        has_token_types: its reference needs to know which tokens are placeholders.
        num_prompt_tokens: tokens that an image of 64 by 48 pixels adds to a conversation, including those
            around its placeholders.
    """

    family: str
    seed: int
    config: dict[str, Any]
    special_tokens: tuple[str, ...]
    image_token: str
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    image_size: int
    num_image_tokens: int
    processor: dict[str, Any]
    template: str
    grids: tuple[tuple[int, int], ...] = ()
    has_token_types: bool = False
    num_prompt_tokens: int
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def image_token_id(self) -> int:
        return _FIRST_ID + self.special_tokens.index(self.image_token)

    @property
    def num_tokens(self) -> int:
        """Number of ids in the tokenizer."""
        return _FIRST_ID + len(self.special_tokens)

    def checkpoint(self) -> TinyModel:
        """Return the description of its checkpoint."""
        return TinyModel(
            self.family,
            self.seed,
            {**_NO_SIZES, **self.config},
            model_class=f"{self.family}ForConditionalGeneration",
            special_tokens=self.special_tokens,
            files={
                "preprocessor_config.json": json.dumps(self.processor),
                "chat_template.jinja": self.template,
            },
            **self.settings,
        )


IMAGE_TOKEN = "<image>"
IMAGE_SIZE, PATCH_SIZE = 30, 6
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

_CLIP_PROCESSOR: dict[str, Any] = {
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
    resample=_CLIP_PROCESSOR["resample"],
    values=PixelValues(mean=tuple(_CLIP_PROCESSOR["image_mean"]), std=tuple(_CLIP_PROCESSOR["image_std"])),
    placeholder=Placeholder(marker=IMAGE_TOKEN, repeated=IMAGE_TOKEN),
    shortest_edge=IMAGE_SIZE,
    crop=(IMAGE_SIZE, IMAGE_SIZE),
    num_image_tokens=NUM_IMAGE_TOKENS,
)
"""The settings as vinfer reads them."""
_LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
LLAVA = VisionModel(
    family="Llava",
    seed=90,
    config={
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
        "image_token_index": _FIRST_ID,
    },
    special_tokens=(IMAGE_TOKEN,),
    image_token=IMAGE_TOKEN,
    image_size=IMAGE_SIZE,
    num_image_tokens=NUM_IMAGE_TOKENS,
    processor=_CLIP_PROCESSOR,
    template=_LLAVA_TEMPLATE,
    num_prompt_tokens=NUM_IMAGE_TOKENS + len("\n"),
)

# SigLIP in front of Qwen2, with all features used; its processor makes all images square.
LLAVA_SIGLIP = VisionModel(
    family="Llava",
    seed=91,
    config={
        "text_config": {
            **SIZES,
            "model_type": "qwen2",
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "vision_use_head": False,
        },
        "image_token_index": _FIRST_ID,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    special_tokens=(IMAGE_TOKEN,),
    image_token=IMAGE_TOKEN,
    image_size=IMAGE_SIZE,
    num_image_tokens=NUM_IMAGE_TOKENS,
    processor={
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    },
    template=_LLAVA_TEMPLATE,
    num_prompt_tokens=NUM_IMAGE_TOKENS + len("\n"),
)
# Four concatenated hidden states, including the one before the first layer.
VIPLLAVA = dataclasses.replace(
    LLAVA,
    family="VipLlava",
    seed=92,
    config={**LLAVA.config, "vision_feature_layers": [-2, 0, -1, 1], "projector_layernorm_eps": 1e-3},
)

# Patches of 4 leave two extra pixels; 12 by 12 patches become 6 by 6 features, more than a window of 17.
_GEMMA3_SIZE, _GEMMA3_FEATURES = 50, 36
_GEMMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA3 = VisionModel(
    family="Gemma3",
    seed=93,
    config={
        "text_config": {
            **SIZES,
            "model_type": "gemma3_text",
            "head_dim": 32,
            "num_hidden_layers": 4,
            "sliding_window": 17,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": _GEMMA3_SIZE,
            "patch_size": 4,
        },
        "boi_token_index": _FIRST_ID,
        "image_token_index": _FIRST_ID + 1,
        "eoi_token_index": _FIRST_ID + 2,
        "mm_tokens_per_image": _GEMMA3_FEATURES,
    },
    special_tokens=(
        "<start_of_image>",
        "<image_soft_token>",
        "<end_of_image>",
        "<start_of_turn>",
        "<end_of_turn>",
    ),
    image_token="<image_soft_token>",
    before=(_FIRST_ID,),
    after=(_FIRST_ID + 2,),
    image_size=_GEMMA3_SIZE,
    num_image_tokens=_GEMMA3_FEATURES,
    processor={
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_seq_length": _GEMMA3_FEATURES,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": _GEMMA3_SIZE, "width": _GEMMA3_SIZE},
    },
    template=_GEMMA3_TEMPLATE,
    has_token_types=True,
    num_prompt_tokens=len("\n\n") + 1 + _GEMMA3_FEATURES + 1 + len("\n\n"),
    settings={"norm_mean": 0.0, "embedding_deviation": 0.02},
)

QWEN2_VL_FACTOR = 12
"""The sides of its images are multiples of this."""
_QWEN2_VL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN2_VL = VisionModel(
    family="Qwen2VL",
    seed=95,
    config={
        "text_config": {
            **SIZES,
            "model_type": "qwen2_vl_text",
            # A head of 16 is 8 pairs.
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "mrope_section": [2, 3, 3]},
        },
        "vision_config": {
            "depth": 3,
            "embed_dim": 48,
            "hidden_size": SIZES["hidden_size"],
            "mlp_ratio": 2,
            "num_heads": 4,
            "patch_size": QWEN2_VL_FACTOR // 2,
        },
        "image_token_id": _FIRST_ID + 1,
        "video_token_id": _FIRST_ID + 3,
        "vision_start_token_id": _FIRST_ID,
        "vision_end_token_id": _FIRST_ID + 2,
    },
    special_tokens=(
        "<|vision_start|>",
        "<|image_pad|>",
        "<|vision_end|>",
        "<|video_pad|>",
        "<|im_start|>",
        "<|im_end|>",
    ),
    image_token="<|image_pad|>",
    before=(_FIRST_ID,),
    after=(_FIRST_ID + 2,),
    image_size=8 * QWEN2_VL_FACTOR,
    num_image_tokens=64,
    grids=((8, 8), (3, 5), (1, 9), (7, 2), (4, 4), (1, 1), (5, 6), (2, 7)),
    processor={
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "min_pixels": 4 * QWEN2_VL_FACTOR**2,
        # More than the largest program accepts.
        "max_pixels": 100 * QWEN2_VL_FACTOR**2,
        "patch_size": QWEN2_VL_FACTOR // 2,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
    template=_QWEN2_VL_TEMPLATE,
    has_token_types=True,
    # 64 by 48 pixels are resized to 60 by 48.
    num_prompt_tokens=1 + 5 * 4 + 1,
)

QWEN2_5_VL = dataclasses.replace(
    QWEN2_VL,
    family="Qwen2_5_VL",
    seed=96,
    config={
        **QWEN2_VL.config,
        "text_config": {
            **QWEN2_VL.config["text_config"],
            "model_type": "qwen2_5_vl_text",
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
        },
        "tie_word_embeddings": True,
        "vision_config": {
            "depth": 4,
            "hidden_size": 48,
            "out_hidden_size": SIZES["hidden_size"],
            "intermediate_size": 80,
            "num_heads": 4,
            "patch_size": QWEN2_VL_FACTOR // 2,
            # Three squares of patches, plus some extra pixels.
            "window_size": 3 * QWEN2_VL_FACTOR + 5,
            "fullatt_block_indexes": [1, 3],
        },
    },
)

VISION: dict[str, VisionModel] = {
    "llava": LLAVA,
    "llava-siglip": LLAVA_SIGLIP,
    "vipllava": VIPLLAVA,
    "gemma3-images": GEMMA3,
    "qwen2-vl": QWEN2_VL,
    "qwen2-5-vl": QWEN2_5_VL,
}
VISION_MODELS: dict[str, TinyModel] = {name: model.checkpoint() for name, model in VISION.items()}
TRAINED_MODELS = {"llava-colours": dataclasses.replace(VISION_MODELS["llava"], is_trained=True)}
"""The same model, trained by `tiny.colours`."""
