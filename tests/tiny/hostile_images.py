"""Image files that must be refused: bombs, odd formats, damaged and endless ones. Imports no vinfer."""

from __future__ import annotations

import struct
import zlib

from PIL import Image
from tiny.images import animated, encoded, noise

HOSTILE_LIMITS = {"max_pixels": 1_000_000, "max_frames": 50, "max_bytes": 2**20}
"""The limits of `server.images` that refuse them."""


def png_of(width: int, height: int) -> bytes:
    """Return a tiny PNG whose header claims this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(2**20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif_of(width: int, height: int) -> bytes:
    small = bytearray(encoded(Image.new("P", (1, 1)), "GIF"))
    small[6:10] = struct.pack("<HH", width, height)
    return bytes(small)


def webp_of(width: int, height: int) -> bytes:
    small = bytearray(animated("WEBP", 2))
    assert small[12:16] == b"VP8X"
    small[24:27], small[27:30] = (width - 1).to_bytes(3, "little"), (height - 1).to_bytes(3, "little")
    return bytes(small)


def jpeg_of(width: int, height: int) -> bytes:
    small = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    at = small.index(b"\xff\xc0")
    small[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(small)


def jpeg_of_many_scans() -> bytes:
    whole = encoded(noise(64, 64), "JPEG", progressive=True)
    first, last = whole.index(b"\xff\xda"), whole.rindex(b"\xff\xda")
    return whole[:last] + whole[first:last] * 40 + whole[last:]


def text_bomb() -> bytes:
    """Return a PNG whose compressed text expands to 200 MiB."""
    whole = encoded(Image.new("RGB", (2, 2)))
    body = b"k\x00\x00" + zlib.compress(bytes(200 * 2**20), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return whole[:33] + chunk + whole[33:]


HOSTILE_IMAGES = {
    "empty": (b"", "not a PNG"),
    "text": (b"hello", "not a PNG"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG"),
    "bmp": (encoded(noise(3, 3), "BMP"), "not a PNG"),
    "tiff": (encoded(noise(3, 3), "TIFF"), "not a PNG"),
    "jpeg 2000": (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64), "not a PNG"),
    "fits": (b"SIMPLE  =                    T" + bytes(2880), "not a PNG"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a PNG"),
    "gd": (b"\xff\xfe\xff\xff\xff\xff" + bytes(1024), "not a PNG"),
    "bmp named png": (b"\x89PNG\r\n\x1a\n" + encoded(noise(3, 3), "BMP"), "damaged PNG"),
    "truncated png": (encoded(noise(64, 64))[:2000], "damaged PNG"),
    "truncated jpeg": (encoded(noise(64, 64), "JPEG")[:1500], "damaged JPEG"),
    "truncated webp": (encoded(noise(64, 64), "WEBP")[:700], "damaged WEBP"),
    "truncated gif": (encoded(noise(64, 64).quantize(64), "GIF")[:900], "damaged GIF"),
    "png bomb": (png_of(60000, 60000), "max_pixels"),
    "png of Pillow's warning": (png_of(10000, 10000), "max_pixels"),
    "png of no height": (png_of(100, 0), "damaged PNG"),
    "gif bomb": (gif_of(65535, 65535), "max_pixels"),
    "webp bomb": (webp_of(16383, 16383), "max_pixels"),
    "jpeg bomb": (jpeg_of(65000, 65000), "max_pixels"),
    "long strip": (png_of(20000, 1), "at most 16384"),
    "text bomb": (text_bomb(), "damaged PNG|bytes"),
    "thousand frame gif": (animated("GIF", 1000), "max_frames"),
    "thousand frame webp": (animated("WEBP", 1000), "max_frames"),
    "thousand frame png": (animated("PNG", 1000), "max_frames"),
    "jpeg of many scans": (jpeg_of_many_scans(), "scans"),
    "too many bytes": (encoded(noise(8, 8)) + bytes(2**20), "max_bytes"),
}
"""Name -> the file, and a regular expression for the error."""
