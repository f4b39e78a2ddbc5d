"""Images of every kind that reaches a server, drawn from a seed."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def noise(width: int, height: int, *, seed: int = 0) -> Image.Image:
    """Return an image in which every pixel and every crop is different."""
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def exif_turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(31, 17), "JPEG", exif=exif, quality=90)


def palette_with_transparency() -> bytes:
    image = noise(23, 11).quantize(16)
    return encoded(image, transparency=bytes([0, 128, 255] + [255] * 13))


def animated(kind: str, num_frames: int) -> bytes:
    frames = [Image.new("RGB", (4, 4), (i % 256, i // 256 % 256, 77)) for i in range(num_frames)]
    # Lossless, because WebP would otherwise merge similar frames.
    options = {"lossless": True} if kind == "WEBP" else {}
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=10, **options)


GRAY_16 = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)


def every_kind() -> dict[str, bytes]:
    """Return images that transformers reads as a person sees them, by what is special about them."""
    return {
        "png": encoded(noise(13, 7)),
        "gray": encoded(noise(13, 7).convert("L")),
        "bilevel": encoded(noise(13, 7).convert("1")),
        "gray and alpha": encoded(noise(13, 7).convert("LA")),
        "alpha": encoded(noise(13, 7).convert("RGBA")),
        "palette": encoded(noise(13, 7).quantize(8)),
        "jpeg": encoded(noise(40, 24), "JPEG"),
        "progressive jpeg": encoded(noise(40, 24), "JPEG", progressive=True),
        "cmyk jpeg": encoded(noise(40, 24).convert("CMYK"), "JPEG"),
        "exif turned": exif_turned(),
        "webp": encoded(noise(19, 20), "WEBP"),
        "lossless webp": encoded(noise(19, 20), "WEBP", lossless=True),
        "webp with alpha": encoded(noise(19, 20).convert("RGBA"), "WEBP"),
        "animated webp": animated("WEBP", 3),
        "gif": encoded(noise(9, 9).quantize(32), "GIF"),
        "animated gif": animated("GIF", 5),
        "animated png": animated("PNG", 3),
    }
