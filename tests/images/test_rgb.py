"""Every mode in which a file can hold pixels becomes the RGB of its 8-bit equal, over white."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny.images import GRAY_16, encoded, noise, palette_with_transparency

from vinfer.config import ImagesConfig
from vinfer.images import decode_image

RGB = np.asarray(noise(13, 7))
GRAY = np.asarray(noise(13, 7).convert("L"))
GRAY_AS_RGB = np.repeat(GRAY[:, :, None], 3, axis=2)


def pixels(data: bytes) -> np.ndarray:
    """Return the decoded image, uint8 [height, width, 3]."""
    return np.asarray(decode_image(data, ImagesConfig()).pixels)


def png(
    values: np.ndarray, *, color: int, depth: int, transparency: bytes = b"", palette: bytes = b""
) -> bytes:
    """Write a PNG of any color type and depth; `values` is [height, width] or [height, width, channels]."""
    height, width = values.shape[:2]
    samples = values.reshape(height, -1)
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = (samples[:, :, None] >> np.arange(depth)[::-1]) & 1
        rows = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))]
    chunks += [(b"PLTE", palette)] if palette else []
    chunks += [(b"tRNS", transparency)] if transparency else []
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return uint8 [height, width, 3] of colors over white; alpha is uint8 [height, width]."""
    part = alpha[:, :, None].astype(np.float64) / 255
    return rgb * part + 255 * (1 - part)


GRAY_TYPE, RGB_TYPE, PALETTE_TYPE, GRAY_ALPHA_TYPE, RGBA_TYPE = 0, 2, 3, 4, 6
ALPHA = np.asarray(noise(13, 7).getchannel("R"))


@pytest.mark.parametrize(("depth", "stretch"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_gray_of_few_bits(depth: int, stretch: int) -> None:
    levels = GRAY >> (8 - depth)
    expected = np.repeat((levels * stretch)[:, :, None], 3, axis=2)
    assert np.array_equal(pixels(png(levels, color=GRAY_TYPE, depth=depth)), expected)
    # One level is transparent.
    key = int(levels[3, 4])
    data = png(levels, color=GRAY_TYPE, depth=depth, transparency=struct.pack(">H", key))
    assert np.array_equal(pixels(data), np.where((levels == key)[:, :, None], 255, expected))


@pytest.mark.parametrize(
    ("color", "values", "expected"),
    [
        (GRAY_TYPE, GRAY, GRAY_AS_RGB),
        (RGB_TYPE, RGB, RGB),
        (GRAY_ALPHA_TYPE, np.dstack([GRAY, ALPHA]), over_white(GRAY_AS_RGB, ALPHA)),
        (RGBA_TYPE, np.dstack([RGB, ALPHA]), over_white(RGB, ALPHA)),
    ],
)
def test_sixteen_bits_are_their_eight(color: int, values: np.ndarray, expected: np.ndarray) -> None:
    eight = pixels(png(values, color=color, depth=8))
    sixteen = pixels(png(values.astype(np.uint16) * 257, color=color, depth=16))
    assert np.array_equal(sixteen, eight)
    assert np.abs(eight - expected).max() <= 1


def test_a_ramp_of_sixteen_bits_stays_a_ramp() -> None:
    """The report: such an image was all white."""
    shades = pixels(encoded(Image.fromarray(GRAY_16)))[:, :, 0].reshape(-1)
    assert (shades[0], shades[-1]) == (0, 255)
    assert (np.diff(shades.astype(int)) >= 0).all()
    assert len(set(shades.tolist())) == 256


def test_a_transparent_level_or_color_of_sixteen_bits() -> None:
    levels = GRAY.astype(np.uint16) * 257
    key = int(levels[3, 4])
    data = png(levels, color=GRAY_TYPE, depth=16, transparency=struct.pack(">H", key))
    assert np.array_equal(pixels(data), np.where((levels == key)[:, :, None], 255, GRAY_AS_RGB))
    colors = RGB.astype(np.uint16) * 257
    data = png(colors, color=RGB_TYPE, depth=16, transparency=struct.pack(">HHH", *colors[2, 3]))
    is_key = (RGB[2, 3] == RGB).all(axis=2)
    assert np.array_equal(pixels(data), np.where(is_key[:, :, None], 255, RGB))


def test_a_palette_with_transparency() -> None:
    data = palette_with_transparency()
    with Image.open(io.BytesIO(data)) as image:
        rgba = np.asarray(image.convert("RGBA"))
    assert np.abs(pixels(data) - over_white(rgba[:, :, :3], rgba[:, :, 3])).max() <= 1


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"),
    "GIF": ("1", "L", "LA", "P", "RGB", "RGBA"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_every_mode_that_a_file_can_have(kind: str, mode: str) -> None:
    """Compared with what Pillow itself shows of the same file."""
    image = noise(13, 7).quantize(8) if mode == "P" else noise(13, 7).convert(mode)
    data = encoded(image, kind)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(pixels(data), np.asarray(opened.convert("RGBA"))[:, :, :3])


@settings(deadline=None)
@given(
    color=st.tuples(*[st.integers(0, 255)] * 3),
    alpha=st.integers(0, 255),
    kind=st.sampled_from(["PNG", "WEBP"]),
)
def test_alpha_is_over_white(color: tuple[int, int, int], alpha: int, kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(Image.new("RGBA", (3, 2), (*color, alpha)), kind, **options)
    shown = pixels(data)[0, 0].astype(int)
    assert np.abs(shown - (np.array(color) * alpha / 255 + 255 - alpha)).max() <= 1


def test_a_transparent_gif() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.putpixel((0, 0), 0)
    shown = pixels(encoded(image, "GIF", transparency=0))
    assert tuple(shown[0, 0]) == (255, 255, 255)
    assert tuple(shown[1, 1]) == (200, 10, 20)
