"""How a model takes its images: the image-processing record that the build writes and the server reads.

One record per model. `vinfer.checkpoint.image_processor` makes it from the checkpoint's processor files, and
the bundle stores it as JSON (`ImageProcessing` is a pydantic union: `IMAGE_PROCESSING.validate_json`). The
arithmetic of sizes and token counts is here too, because both halves need it: the build for its shapes, the
server for its prompts. Plain Python: no arrays and no images (`vinfer.images` has those).

Sizes are (height, width) in pixels everywhere.

Source: the Pillow image processors of transformers 5.5 (`image_processing_pil_*.py`), which is also what
`AutoImageProcessor` returns if torchvision is not installed. The torchvision processors use other resizing
arithmetic and differ by single steps of 1/255; the models were trained with Pillow's.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import pydantic

Size = tuple[int, int]
Triple = tuple[float, float, float]

MAX_SIDE = 16384
MAX_ASPECT_RATIO = 200
"""Above it the reference implementation of Qwen2-VL raises (`smart_resize`)."""

_Pixels = Annotated[int, pydantic.Field(ge=1, le=MAX_SIDE)]
_PatchSide = Annotated[int, pydantic.Field(ge=1, le=256)]


class _Frozen(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Placeholder(_Frozen):
    """The text that stands for one image in a rendered prompt.

    Attributes:
        marker: what the chat template writes once per image.
        before: text before the image tokens: a token with white space around it, or nothing.
        repeated: the token whose embeddings the image's features replace.
        after: text after the image tokens, likewise.
    """

    marker: str = pydantic.Field(min_length=1)
    before: str = ""
    repeated: str = pydantic.Field(min_length=1)
    after: str = ""

    def expand(self, num_tokens: int) -> str:
        """Return the text that replaces one marker, before tokenization: newlines around it may merge."""
        return self.before + self.repeated * num_tokens + self.after


class PixelValues(_Frozen):
    """How each byte of a channel is converted: `(byte * rescale_factor - mean) / std`, each step optional."""

    rescale_factor: float | None = pydantic.Field(default=1 / 255, gt=0)
    mean: Triple | None = None
    std: Triple | None = None

    @pydantic.model_validator(mode="after")
    def _both_or_none(self) -> PixelValues:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        if self.std is not None and not all(self.std):
            raise ValueError("std must not be 0")
        return self


class _Record(_Frozen):
    resample: int = pydantic.Field(ge=0, le=5, description="A number of Pillow's `Image.Resampling`.")
    values: PixelValues
    placeholder: Placeholder

    @property
    def output_size(self) -> Size | None:
        """The size that every image is brought to; None if it depends on the image."""
        return None

    def with_max_pixels(self, max_pixels: int) -> Self:
        """Return the record with a lower limit of the area of images, so that they fit a program."""
        return self


class ClipProcessing(_Record):
    """CLIP as LLaVA uses it: pad, resize the shortest edge, crop the center.

    Attributes:
        pad_to_square: first pad to a square with the mean color.
        shortest_edge: length that the shorter edge is resized to; None with `resize_to`, or for no resizing.
        resize_to: fixed size to resize to instead.
        crop: final size of every image; smaller images are padded with black.
        num_image_tokens: placeholder tokens of an image (`clip_num_tokens`).
    """

    kind: Literal["clip"] = "clip"
    pad_to_square: bool = False
    shortest_edge: _Pixels | None = None
    resize_to: tuple[_Pixels, _Pixels] | None = None
    crop: tuple[_Pixels, _Pixels]
    num_image_tokens: int = pydantic.Field(ge=1)

    @property
    def output_size(self) -> Size:
        return self.crop


class SiglipProcessing(_Record):
    """SigLIP as Gemma 3 uses it: resize to one size, whatever the aspect ratio; no pan and scan.

    Attributes:
        resize_to: final size of every image.
        num_image_tokens: placeholder tokens of an image: Gemma 3's `mm_tokens_per_image`.
    """

    kind: Literal["siglip"] = "siglip"
    resize_to: tuple[_Pixels, _Pixels]
    num_image_tokens: int = pydantic.Field(ge=1)

    @property
    def output_size(self) -> Size:
        return self.resize_to


class Qwen2VLProcessing(_Record):
    """Qwen2-VL: resize to a multiple of the patch grid near the image's own size, cut into patches.

    Attributes:
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames per patch; a still image is repeated.
        merge_size: side of the square of patches that becomes one token.
        min_pixels, max_pixels: limits of the area that an image is enlarged or shrunk to.
        max_tokens: most tokens of the largest encoder; an image so long that it needs more is refused.
    """

    kind: Literal["qwen2_vl"] = "qwen2_vl"
    patch_size: _PatchSide
    temporal_patch_size: int = pydantic.Field(ge=1, le=16)
    merge_size: int = pydantic.Field(ge=1, le=16)
    min_pixels: int = pydantic.Field(ge=1)
    max_pixels: int = pydantic.Field(ge=1)
    max_tokens: int | None = pydantic.Field(default=None, ge=1)

    @property
    def factor(self) -> int:
        """The number that both sides of a resized image are multiples of."""
        return self.patch_size * self.merge_size

    def with_max_pixels(self, max_pixels: int) -> Self:
        # The reference has this limit too.
        limit = min(max_pixels, self.max_pixels)
        limits = {"max_pixels": limit, "min_pixels": min(self.min_pixels, limit)}
        return self.model_copy(update={**limits, "max_tokens": max_pixels // self.factor**2})


ImageProcessing = Annotated[
    ClipProcessing | SiglipProcessing | Qwen2VLProcessing, pydantic.Field(discriminator="kind")
]
IMAGE_PROCESSING: pydantic.TypeAdapter[ClipProcessing | SiglipProcessing | Qwen2VLProcessing] = (
    pydantic.TypeAdapter(ImageProcessing)
)


def num_tokens(record: ImageProcessing, size: Size) -> int:
    """Count the placeholder tokens of an image of this size, without the text around them.

    Raises:
        ValueError: the model does not support the aspect ratio.
    """
    if not isinstance(record, Qwen2VLProcessing):
        return record.num_image_tokens
    _, rows, columns = grid(record, size)
    return rows * columns // record.merge_size**2


def grid(record: Qwen2VLProcessing, size: Size) -> tuple[int, int, int]:
    """Count the patches of an image along time, height and width (`image_grid_thw`).

    Raises:
        ValueError: the model does not support the aspect ratio.
    """
    height, width = smart_resize(record, size)
    return 1, height // record.patch_size, width // record.patch_size


def smart_resize(record: Qwen2VLProcessing, size: Size) -> Size:
    """Return the size nearest to `size` in multiples of `factor` whose area is within the record's limits.

    Raises:
        ValueError: the aspect ratio is above `MAX_ASPECT_RATIO`, or makes the image exceed both `max_pixels`
            and `max_tokens`.
    """
    height, width = size
    if max(size) / min(size) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"the image is {width}x{height} pixels; this model takes an aspect ratio of at most "
            f"{MAX_ASPECT_RATIO}: crop it"
        )
    factor = record.factor
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > record.max_pixels:
        shrink = math.sqrt(height * width / record.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < record.min_pixels:
        grow = math.sqrt(record.min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    num_tokens = new_height * new_width // factor**2
    if record.max_tokens is not None and num_tokens > record.max_tokens:
        raise ValueError(
            f"the image is {width}x{height} pixels and takes {num_tokens} tokens; this server takes at most "
            f"{record.max_tokens} per image: crop it to a smaller aspect ratio"
        )
    return new_height, new_width


def clip_num_tokens(
    size: Size,
    patch_size: int,
    select_strategy: Literal["default", "full"] = "default",
    num_additional_tokens: int = 1,
) -> int:
    """Count LLaVA's tokens of an image: one per patch, and the class token unless `default` drops it.

    Args:
        size: size of the image after cropping.
        num_additional_tokens: tokens that the encoder puts before the patches: 1 for CLIP's class token.
    """
    height, width = size
    dropped = 1 if select_strategy == "default" else 0
    return (height // patch_size) * (width // patch_size) + num_additional_tokens - dropped
