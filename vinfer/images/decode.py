"""Decodes bytes into an RGB image, within limits; the only place that opens images.

Runs on worker threads, because Pillow releases the interpreter lock while it decodes. Sizes are checked
before pixels are allocated. The result equals what the reference gets (`load_image` of transformers): the
first frame, rotated as EXIF says, as RGB; 16-bit gray and transparent images are read better (see `rgb`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging

from PIL import Image, ImageOps

from vinfer.config import ImagesConfig
from vinfer.errors import ImageError
from vinfer.image_processing import MAX_SIDE
from vinfer.images.container import Format, gif_num_frames, jpeg_num_scans, sniff_format, webp_size
from vinfer.images.rgb import as_rgb, raw_mode_of

logger = logging.getLogger(__name__)

MAX_JPEG_SCANS = 100


@dataclasses.dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image.

    Attributes:
        pixels: mode RGB.
        content_hash: sha256 over mode, size and pixels, in hex: the same for the same image in any file.
    """

    pixels: Image.Image
    content_hash: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.height, self.pixels.width


def decode_image(data: bytes, limits: ImagesConfig, *, param: str | None = None) -> DecodedImage:
    """Decode the first frame of a PNG, JPEG, WebP or GIF file.

    Raises:
        ImageError: another format, damaged, or beyond a limit of bytes, pixels, sides, frames or scans.
    """
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the image is larger than server.images.max_bytes = {limits.max_bytes}: make it smaller",
            param=param,
        )
    kind = sniff_format(data)
    if kind is None:
        raise ImageError("the image is not a PNG, JPEG, WebP or GIF image: convert it", param=param)
    try:
        rgb = _decode(data, kind, limits, param)
        return DecodedImage(pixels=rgb, content_hash=_content_hash(rgb))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        refusal = _too_many_pixels(limits, param)
    except Exception:
        # Decoders raise any exception on a damaged file, and their messages contain addresses and paths.
        logger.debug("cannot decode a %s image", kind, exc_info=True)
        refusal = ImageError(
            f"the image is a damaged {kind} image: it cannot be decoded; save it again", param=param
        )
    # Raised outside the except block, so that it does not keep the decoder's frames, and the file, alive.
    raise refusal


def _decode(data: bytes, kind: Format, limits: ImagesConfig, param: str | None) -> Image.Image:
    if kind == "WEBP":
        _check_size(webp_size(data), limits, param)
    if kind == "GIF":
        _check_frames(gif_num_frames(data, at_most=limits.max_frames + 1), limits, param)
    if kind == "JPEG" and jpeg_num_scans(data) > MAX_JPEG_SCANS:
        raise ImageError(
            f"the image is a JPEG of more than {MAX_JPEG_SCANS} scans: save it again", param=param
        )
    with Image.open(io.BytesIO(data), formats=[kind]) as image:
        _check_size(image.size, limits, param)
        if kind != "GIF":
            _check_frames(getattr(image, "n_frames", 1), limits, param)
        raw_mode = raw_mode_of(image)
        return as_rgb(ImageOps.exif_transpose(image), raw_mode=raw_mode)


def _check_size(size: tuple[int, int] | None, limits: ImagesConfig, param: str | None) -> None:
    if size is None:
        return
    width, height = size
    if width * height > limits.max_pixels:
        raise _too_many_pixels(limits, param)
    if max(size) > MAX_SIDE:
        raise ImageError(
            f"the image is {width}x{height} pixels; a side may have at most {MAX_SIDE}: make it smaller",
            param=param,
        )


def _too_many_pixels(limits: ImagesConfig, param: str | None) -> ImageError:
    return ImageError(
        f"the image has more pixels than server.images.max_pixels = {limits.max_pixels}: make it smaller",
        param=param,
    )


def _check_frames(num_frames: int, limits: ImagesConfig, param: str | None) -> None:
    if num_frames > limits.max_frames:
        raise ImageError(
            f"the image has more frames than server.images.max_frames = {limits.max_frames}: send one frame",
            param=param,
        )


def _content_hash(image: Image.Image) -> str:
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
