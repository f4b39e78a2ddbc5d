"""Our arrays equal those of transformers' Pillow image processors, for odd sizes and every kind of file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny.images import encoded, every_kind, noise

from vinfer.config import ImagesConfig
from vinfer.errors import ImageError
from vinfer.image_processing import (
    ClipProcessing,
    ImageProcessing,
    PixelValues,
    Placeholder,
    Qwen2VLProcessing,
    SiglipProcessing,
)
from vinfer.images import PreparedImage, decode_image, preprocess

pytest.importorskip("transformers")

# A hundredth of one byte step, before normalization by a standard deviation of at least 0.25.
ATOL = 1e-2 / 255 / 0.25
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_VALUES = PixelValues(mean=MEAN, std=STD)
IMAGE = Placeholder(marker="<image>", repeated="<image>")
SIZES = [(1, 1), (3, 7), (7, 3), (640, 480), (30, 2000), (2000, 30), (57, 56), (28, 28), (333, 500)]


def clip(**changes: Any) -> ClipProcessing:
    settings: dict[str, Any] = {"shortest_edge": 56, "crop": (56, 56), "resample": 3}
    settings.update(changes)
    return ClipProcessing(values=CLIP_VALUES, placeholder=IMAGE, num_image_tokens=16, **settings)


SIGLIP = SiglipProcessing(
    resample=2,
    values=PixelValues(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    placeholder=IMAGE,
    resize_to=(56, 70),
    num_image_tokens=4,
)
QWEN = Qwen2VLProcessing(
    resample=3,
    values=CLIP_VALUES,
    placeholder=IMAGE,
    patch_size=14,
    temporal_patch_size=2,
    merge_size=2,
    min_pixels=56 * 56,
    max_pixels=28 * 28 * 64,
)


def prepare(data: bytes, record: ImageProcessing) -> PreparedImage:
    return preprocess(decode_image(data, ImagesConfig()), record)


def reference_clip(image: Image.Image, record: ClipProcessing) -> np.ndarray:
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = (
        {"height": record.resize_to[0], "width": record.resize_to[1]}
        if record.resize_to
        else {"shortest_edge": record.shortest_edge}
    )
    crop = {"height": record.crop[0], "width": record.crop[1]}
    processor = LlavaImageProcessorPil(
        size=size, crop_size=crop, do_pad=record.pad_to_square, resample=record.resample
    )
    return np.asarray(processor(image)["pixel_values"][0])


def reference_siglip(image: Image.Image) -> np.ndarray:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    height, width = SIGLIP.resize_to
    processor = Gemma3ImageProcessorPil(size={"height": height, "width": width}, do_pan_and_scan=False)
    return np.asarray(processor(image)["pixel_values"][0])


def reference_qwen(image: Image.Image) -> tuple[np.ndarray, list[int]]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": QWEN.min_pixels, "longest_edge": QWEN.max_pixels}
    )
    features = processor(image)
    return np.asarray(features["pixel_values"]), np.asarray(features["image_grid_thw"])[0].tolist()


def loaded(data: bytes) -> Image.Image:
    """Return the image that `AutoProcessor.apply_chat_template` reads from a file."""
    from transformers.image_utils import load_image

    image: Image.Image = load_image(Image.open(io.BytesIO(data)))
    return image


def images() -> Iterator[tuple[str, bytes]]:
    for width, height in SIZES:
        yield f"{width}x{height}", encoded(noise(width, height))
    yield from every_kind().items()


IMAGES = dict(images())


def assert_equal(ours: np.ndarray, reference: np.ndarray) -> None:
    assert ours.dtype == np.float32
    assert ours.shape == reference.shape
    np.testing.assert_allclose(ours, reference, rtol=0, atol=ATOL)


@pytest.mark.parametrize("name", IMAGES)
def test_every_image_is_prepared_as_by_the_reference(name: str) -> None:
    data = IMAGES[name]
    image = loaded(data)
    for record in (
        clip(),
        clip(crop=(41, 64)),
        clip(shortest_edge=None, resize_to=(33, 40), crop=(33, 40)),
        clip(pad_to_square=True, resample=2),
    ):
        assert_equal(prepare(data, record).pixels, reference_clip(image, record))
    assert_equal(prepare(data, SIGLIP).pixels, reference_siglip(image))
    pixels, grid = reference_qwen(image)
    ours = prepare(data, QWEN)
    assert_equal(ours.pixels, pixels)
    assert ours.grid is not None
    assert list(ours.grid) == grid
    assert ours.num_tokens == grid[1] * grid[2] // 4
    assert ours.token_grid == (grid[1] // 2, grid[2] // 2)


@pytest.mark.parametrize("size", [(30, 2000), (2000, 30)])
def test_a_strip_is_resized_only_where_it_is_kept(size: tuple[int, int]) -> None:
    """Resized as a whole it has 20 megapixels, which the reference can still handle for comparison."""
    data = encoded(noise(*size))
    record = clip(shortest_edge=560, crop=(56, 56))
    ours, reference = prepare(data, record).pixels, reference_clip(loaded(data), record)
    steps = np.abs(ours - reference) * np.asarray(STD)[:, None, None] * 255
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() < 0.02


@pytest.mark.parametrize("size", [(16384, 1), (1, 16384)])
def test_the_longest_strips_are_prepared_or_refused(size: tuple[int, int]) -> None:
    data = encoded(noise(*size))
    assert prepare(data, clip(shortest_edge=336, crop=(336, 336))).pixels.shape == (3, 336, 336)
    assert prepare(data, SIGLIP).pixels.shape == (3, 56, 70)
    for record in (QWEN, clip(pad_to_square=True)):
        with pytest.raises(ImageError, match="crop it"):
            prepare(data, record)


def test_an_image_that_no_program_takes_is_refused() -> None:
    """The pixel limit does not limit tokens, because no side is ever shorter than one token."""
    data = encoded(noise(10, 1500))
    limited = QWEN.with_max_pixels(28 * 28 * 8)
    unlimited = limited.model_copy(update={"max_tokens": None})
    assert prepare(data, unlimited).num_tokens > 8
    with pytest.raises(ImageError, match=r"is 10x1500 pixels and takes \d+ tokens; .* at most 8 .* crop it"):
        prepare(data, limited)
    assert prepare(encoded(noise(300, 400)), limited).num_tokens <= 8
