"""Reads a request's image field: a data URL, decoded strictly, or a URL to fetch.

Runs on worker threads. Never opens a file and never looks for URLs in text.
"""

from __future__ import annotations

import binascii

from vinfer.config import ImagesConfig
from vinfer.errors import ImageError
from vinfer.images.decode import DecodedImage, decode_image

MEDIA_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif")
# Longest `data:...;base64,` that is read.
_MAX_HEAD = 128


def is_remote(source: str, *, param: str | None = None) -> bool:
    """Return whether the source is an http(s) URL rather than a data URL.

    Raises:
        ImageError: neither of the two.
    """
    scheme = source[:8].lower()
    if scheme.startswith("data:"):
        return False
    if scheme.startswith(("http://", "https://")):
        return True
    raise ImageError(
        "the image is neither a data URL (data:image/png;base64,...) nor an http(s) URL", param=param
    )


def read_data_url(source: str, limits: ImagesConfig, *, param: str | None = None) -> DecodedImage:
    """Decode the image in a data URL: `data:image/<png, jpeg, webp or gif>;base64,<standard base64>`.

    The declared type must be one of these, but the bytes decide what the image is.

    Raises:
        ImageError: another form, type or alphabet, or an error of `decode_image`.
    """
    head, comma, encoded = source[: _MAX_HEAD + 1].partition(",")
    scheme, colon, media = head.partition(":")
    if not comma or not colon or scheme.lower() != "data":
        raise ImageError("the image is not a data URL: write data:image/png;base64,...", param=param)
    media_type, *parameters = (part.strip().lower() for part in media.split(";"))
    if media_type not in MEDIA_TYPES:
        raise ImageError(
            "the image is a data URL of an unsupported type: "
            "send image/png, image/jpeg, image/webp or image/gif",
            param=param,
        )
    if not parameters or parameters[-1] != "base64":
        raise ImageError("the image is a data URL without ;base64: encode the image in base64", param=param)
    # White space is no part of base64, and many encoders break lines.
    encoded = "".join(source[len(head) + 1 :].split())
    if len(encoded) // 4 * 3 - encoded[-2:].count("=") > limits.max_bytes:
        raise ImageError(
            f"the image is larger than server.images.max_bytes = {limits.max_bytes}: make it smaller",
            param=param,
        )
    return decode_image(_base64(encoded, param), limits, param=param)


def _base64(encoded: str, param: str | None) -> bytes:
    try:
        if len(encoded) % 4:
            raise binascii.Error("excess or missing padding, which the decoder may let pass")
        return binascii.a2b_base64(encoded.encode("ascii"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        raise ImageError(
            "the image is not valid base64: use the standard alphabet with padding",
            param=param,
        ) from None
