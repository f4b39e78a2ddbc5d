"""Converts an image to the array that a model's encoder takes, as the reference's Pillow processors do.

Runs on worker threads; NumPy and Pillow only. Follows `image_processing_pil_*.py` of transformers 5.5 step
by step: each resampling rounds to bytes, so the order of the steps affects the result.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from vinfer.errors import ImageError
from vinfer.image_processing import (
    ClipProcessing,
    ImageProcessing,
    PixelValues,
    Qwen2VLProcessing,
    Size,
    num_tokens,
    smart_resize,
)
from vinfer.images.decode import DecodedImage

MAX_RESIZED_PIXELS = 2**24
"""Above it only the part that the crop keeps is resized: a strip of 1x16384 would become 600 megapixels."""


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedImage:
    """The input of the encoder for one image.

    Attributes:
        pixels: float32 [channels, height, width]; for Qwen2-VL float32
            [patches, channels * temporal_patch_size * patch_size**2], in the order of its merged squares.
        grid: patches along time, height and width (`image_grid_thw`); only for Qwen2-VL.
        token_grid: rows and columns of its placeholder tokens; only for Qwen2-VL.
        num_tokens: placeholder tokens in the prompt.
        content_hash: hash of the image (`DecodedImage`): the key of its features within one model.
    """

    pixels: np.ndarray
    grid: tuple[int, int, int] | None
    num_tokens: int
    content_hash: str
    token_grid: tuple[int, int] | None = None


def preprocess(image: DecodedImage, record: ImageProcessing, *, param: str | None = None) -> PreparedImage:
    """Resize, crop, rescale and normalize one image.

    Raises:
        ImageError: the model does not support the image's shape.
    """
    token_grid = None
    try:
        tokens = num_tokens(record, image.size)
        if isinstance(record, ClipProcessing):
            pixels, grid = _values(_clip(image.pixels, record), record.values), None
        elif isinstance(record, Qwen2VLProcessing):
            pixels, grid = _qwen2_vl(image, record)
            token_grid = grid[1] // record.merge_size, grid[2] // record.merge_size
        else:
            resized = _resize(image.pixels, record.resize_to, record.resample)
            pixels, grid = _values(np.asarray(resized), record.values), None
    except ValueError as error:
        raise ImageError(str(error), param=param) from None
    return PreparedImage(
        pixels=pixels,
        grid=grid,
        num_tokens=tokens,
        content_hash=image.content_hash,
        token_grid=token_grid,
    )


def _clip(image: Image.Image, record: ClipProcessing) -> np.ndarray:
    if record.pad_to_square:
        image = _pad_to_square(image, record.values)
    size = image.height, image.width
    if record.resize_to is not None:
        size = record.resize_to
    elif record.shortest_edge is not None:
        size = _shortest_edge_size(size, record.shortest_edge)
    if size[0] * size[1] > MAX_RESIZED_PIXELS:
        return _resize_center(image, size, record)
    return _center_crop(np.asarray(_resize(image, size, record.resample)), record.crop)


def _pad_to_square(image: Image.Image, values: PixelValues) -> Image.Image:
    side = max(image.size)
    if image.width == image.height:
        return image
    if side * side > 4 * MAX_RESIZED_PIXELS:
        raise ValueError(
            f"the image is {image.width}x{image.height} pixels, too long to pad to a square: crop it"
        )
    red, green, blue = (int(mean * 255) for mean in values.mean or (0, 0, 0))
    square = Image.new("RGB", (side, side), (red, green, blue))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _shortest_edge_size(size: Size, edge: int) -> Size:
    height, width = size
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _resize(image: Image.Image, size: Size, resample: int) -> Image.Image:
    height, width = size
    return image.resize((width, height), resample=Image.Resampling(resample))


def _resize_center(image: Image.Image, size: Size, record: ClipProcessing) -> np.ndarray:
    """Resize only the part that a center crop of the resized image keeps.

    Equal to resizing and then cropping, except for rounded coordinates: some values differ by 1/255.
    """
    height, width = size
    crop_height, crop_width = min(record.crop[0], height), min(record.crop[1], width)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    down, across = image.height / height, image.width / width
    resample = Image.Resampling(record.resample)
    # Two passes: rounding between them affects the result, and with a box Pillow chooses their order itself.
    columns = (left * across, 0, (left + crop_width) * across, image.height)
    rows = (0, top * down, crop_width, (top + crop_height) * down)
    kept = image.resize((crop_width, image.height), resample, box=columns)
    kept = kept.resize((crop_width, crop_height), resample, box=rows)
    return _center_crop(np.asarray(kept), record.crop)


def _center_crop(image: np.ndarray, size: Size) -> np.ndarray:
    """Crop the center of uint8 [height, width, channels]; pad a smaller image with black."""
    height, width = image.shape[:2]
    crop_height, crop_width = size
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    if top >= 0 and left >= 0:
        return image[top : top + crop_height, left : left + crop_width]
    padded_height, padded_width = max(height, crop_height), max(width, crop_width)
    padded = np.zeros((padded_height, padded_width, image.shape[2]), image.dtype)
    # An odd pixel of padding goes before the image, an odd pixel of cropping after it.
    above, before = math.ceil((padded_height - height) / 2), math.ceil((padded_width - width) / 2)
    padded[above : above + height, before : before + width] = image
    top, left = top + above, left + before
    return padded[top : top + crop_height, left : left + crop_width]


def _values(image: np.ndarray, values: PixelValues) -> np.ndarray:
    """Convert uint8 [height, width, channels] to float32 [channels, height, width] with a lookup table."""
    table = np.repeat(np.arange(256, dtype=np.float64)[:, None], 3, axis=1)
    if values.rescale_factor is not None:
        table *= values.rescale_factor
    rounded = table.astype(np.float32)
    if values.mean is not None and values.std is not None:
        mean, std = np.array(values.mean, np.float32), np.array(values.std, np.float32)
        rounded = np.divide(rounded - mean, std, dtype=np.float32)
    return np.stack([rounded[image[:, :, channel], channel] for channel in range(3)])


def _qwen2_vl(image: DecodedImage, record: Qwen2VLProcessing) -> tuple[np.ndarray, tuple[int, int, int]]:
    height, width = smart_resize(record, image.size)
    pixels = _values(np.asarray(_resize(image.pixels, (height, width), record.resample)), record.values)
    patch, merge, frames = record.patch_size, record.merge_size, record.temporal_patch_size
    rows, columns = height // patch, width // patch
    squares = pixels.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
    # One row per patch, the patches of a merged square one after the other.
    patches = squares.transpose(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, 1, patch * patch)
    repeated = np.repeat(patches, frames, axis=2)
    return repeated.reshape(rows * columns, 3 * frames * patch * patch), (1, rows, columns)
