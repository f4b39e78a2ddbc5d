"""Inspects the bytes of an image file before any decoder sees it.

Pure functions over bytes, each linear in the file's length. Pillow allocates some images while it opens them,
and a small file with many frames or scans can keep it busy; such files are detected here.
"""

from __future__ import annotations

from typing import Literal

Format = Literal["PNG", "JPEG", "WEBP", "GIF"]

_GIF_TRAILER, _GIF_EXTENSION, _GIF_IMAGE = 0x3B, 0x21, 0x2C


def sniff_format(data: bytes) -> Format | None:
    """Return the format by its signature, under Pillow's name; None if it is unsupported."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a WebP's canvas; None if its header is invalid."""
    kind, head = data[12:16], data[20:30]
    if len(head) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    return None


def gif_num_frames(data: bytes, *, at_most: int) -> int:
    """Count a GIF's frames without decoding any; stop at `at_most` or at the first damage."""
    num_frames = 0
    at = 13 + _color_table_bytes(data, 10)
    while at < len(data) and data[at] != _GIF_TRAILER and num_frames < at_most:
        if data[at] == _GIF_EXTENSION:
            at += 2
        elif data[at] == _GIF_IMAGE:
            num_frames += 1
            at += 11 + _color_table_bytes(data, at + 9)
        else:
            # Pillow skips bytes that belong to no block.
            at += 1
            continue
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return num_frames


def _color_table_bytes(data: bytes, flags_at: int) -> int:
    flags = data[flags_at] if flags_at < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def jpeg_num_scans(data: bytes) -> int:
    """Count a JPEG's scans, each of which costs a pass over the image; scan data never has the marker."""
    return data.count(b"\xff\xda")
