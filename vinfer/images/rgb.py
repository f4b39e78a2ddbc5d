"""Converts a decoded image of any mode to RGB: 16 bits become 8, and what is transparent becomes white.

Pillow's own conversion clips 16-bit values, so that almost all of them become white, and shows the color that
a file happens to have under full transparency, mostly black. Runs on worker threads.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_WHITE = (255, 255, 255)
# PNG states a transparent gray level in the file's own bits; Pillow stretches the levels, but not that one.
_STRETCHED = {"1": 255, "L;2": 85, "L;4": 17}


def as_rgb(image: Image.Image, *, raw_mode: str) -> Image.Image:
    """Return the image in mode RGB, over white where it is transparent.

    Args:
        raw_mode: how the file stores a pixel, under Pillow's name; known before the image is loaded.
    """
    key = image.info.pop("transparency", None)
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image)
        is_seen = None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        # The high byte, as Pillow reads 16-bit colors.
        return _over_white(Image.fromarray((values >> 8).astype(np.uint8)), is_seen)
    if isinstance(key, int) and image.mode in ("1", "L"):
        level = min(key * _STRETCHED.get(raw_mode, 1), 255)
        gray = image.convert("L")
        return _over_white(gray, gray.point(lambda value: 0 if value == level else 255))
    if key is not None:
        if isinstance(key, tuple) and max(key) > 255:
            key = tuple(level >> 8 for level in key)
        image.info["transparency"] = key
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    return _over_white(rgba, rgba.getchannel("A"))


def raw_mode_of(image: Image.Image) -> str:
    """Return how the file of an image that is not loaded yet stores a pixel."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else image.mode
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _over_white(image: Image.Image, alpha: Image.Image | None) -> Image.Image:
    rgb = image.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    white = Image.new("RGB", image.size, _WHITE)
    white.paste(rgb, mask=alpha)
    return white
