"""Hostile and odd picture files: each is a short refusal or the picture that the reference would get."""

from __future__ import annotations

import io
import re
import struct
import time
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import animated, data_url, encoded, every_kind, exif_turned, noise
from PIL import Image, ImageOps

from vinfer.config import ImagesConfig
from vinfer.errors import ImageError, RequestError
from vinfer.images import decode_image, is_remote, read_data_url
from vinfer.images.container import gif_num_frames, webp_size

LIMITS = ImagesConfig(max_pixels=1_000_000, max_frames=50, max_bytes=2**20)
KINDS = every_kind()


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_becomes_the_rgb_of_the_reference(name: str) -> None:
    """As `load_image` of transformers does it."""
    with Image.open(io.BytesIO(KINDS[name])) as image:
        reference = ImageOps.exif_transpose(image).convert("RGB")
    ours = decode_image(KINDS[name], ImagesConfig())
    assert ours.pixels.mode == "RGB"
    assert ours.size == (reference.height, reference.width)
    assert ours.pixels.tobytes() == reference.tobytes()


def test_exif_turns_the_picture() -> None:
    assert decode_image(exif_turned(), LIMITS).size == (31, 17)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header says so, with next to no bytes in it."""

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
    """A PNG whose compressed text is 200 MiB."""
    whole = encoded(Image.new("RGB", (2, 2)))
    body = b"k\x00\x00" + zlib.compress(bytes(200 * 2**20), 9)
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return whole[:33] + chunk + whole[33:]


REFUSED = {
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


@pytest.fixture
def no_memory_is_kept() -> Iterator[None]:
    """Python's allocations are back where they were, and never went far."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    yield
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 2**20
    assert peak - before < 80 * 2**20


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.usefixtures("no_memory_is_kept")
def test_a_hostile_file_is_refused_at_once(name: str) -> None:
    data, reason = REFUSED[name]
    started = time.monotonic()
    with pytest.raises(ImageError, match=reason) as refused:
        decode_image(data, LIMITS, param="messages[0].content[1].image_url.url")
    assert time.monotonic() - started < 1
    error = refused.value
    assert isinstance(error, RequestError)
    assert (error.status, error.param) == (400, "messages[0].content[1].image_url.url")
    # No heap address, path or decoder's words (CVE-2026-22778).
    assert not re.search(r"0x[0-9a-f]{4,}|/\w+/|<|Traceback|BytesIO|PIL", error.message)
    assert error.__context__ is None


def test_a_bomb_of_pixels_costs_no_memory() -> None:
    """Pillow's own memory, which Python does not count: the process must not grow by a canvas."""

    def peak_mib() -> int:
        with open("/proc/self/status") as status:
            return int(re.findall(r"VmHWM:\s+(\d+)", status.read())[0]) // 1024

    before = peak_mib()
    for name in ("png bomb", "gif bomb", "webp bomb", "jpeg bomb", "thousand frame webp"):
        with pytest.raises(ImageError):
            decode_image(REFUSED[name][0], LIMITS)
    assert peak_mib() - before < 64


@pytest.mark.parametrize("size", [(1, 1), (16384, 1), (1, 16384), (3, 7), (1000, 1000)])
def test_the_sizes_at_the_edges_are_read(size: tuple[int, int]) -> None:
    assert decode_image(encoded(Image.new("RGB", size)), LIMITS).size == size[::-1]


def test_a_few_frames_give_the_first() -> None:
    for kind in ("GIF", "PNG", "WEBP"):
        first = decode_image(animated(kind, 50), LIMITS).pixels.getpixel((0, 0))
        assert np.abs(np.subtract(first, (0, 0, 77))).max() <= 8


def test_gif_frames_are_counted_as_pillow_does() -> None:
    for num_frames in (1, 2, 49):
        data = animated("GIF", num_frames)
        with Image.open(io.BytesIO(data)) as image:
            assert gif_num_frames(data, at_most=100) == image.n_frames == num_frames


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\x00\x00MM\x00*"}])
def test_the_size_of_a_webp_is_that_of_pillow(options: dict[str, object]) -> None:
    data = encoded(noise(37, 21), "WEBP", **options)
    assert webp_size(data) == (37, 21)


def test_hashes_tell_pictures_apart_and_files_not() -> None:
    """Same bytes in another shape or palette were one picture to vLLM (CVE-2025-46722)."""
    flat = bytes(range(36))
    shapes = [Image.frombytes("RGB", size, flat) for size in ((2, 6), (6, 2), (3, 4), (4, 3), (12, 1))]
    palettes = []
    for shift in (0, 1):
        image = Image.frombytes("P", (4, 4), bytes(i % 4 for i in range(16)))
        image.putpalette([(i * 40 + shift * 7) % 256 for i in range(12)])
        palettes.append(image)
    pictures = [*shapes, *palettes]
    hashes = [decode_image(encoded(image), LIMITS).content_hash for image in pictures]
    assert len(set(hashes)) == len(pictures)
    again = [decode_image(encoded(image, compress_level=1), LIMITS).content_hash for image in pictures]
    assert again == hashes


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_damaged_file_is_a_picture_or_a_refusal(name: str, data: st.DataObject) -> None:
    """Whatever decoders raise over it."""
    damaged = bytearray(KINDS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    message = ""
    try:
        decode_image(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]), LIMITS)
    except ImageError as error:
        message = error.message
    assert not re.search(r"0x[0-9a-f]{4,}|PIL", message)


PNG = encoded(noise(5, 4))


@pytest.mark.parametrize("media_type", ["image/png", "IMAGE/PNG", "image/jpeg", "image/png;charset=utf-8"])
def test_a_data_url_is_read_and_its_bytes_say_what_it_is(media_type: str) -> None:
    url = data_url(PNG, media_type)
    assert not is_remote(url)
    assert read_data_url(url, LIMITS).size == (4, 5)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("data:image/png;base64," + "A" * 5, "base64"),
        (data_url(PNG) + "!", "base64"),
        (data_url(PNG).replace(",", ",\n"), "base64"),
        (data_url(PNG).rstrip("=") if data_url(PNG).endswith("=") else data_url(PNG) + "=", "base64"),
        (data_url(PNG).replace(";base64,", ",", 1), "without ;base64"),
        ("data:image/png;base64,\u4e00", "base64"),
        ("data:image/png;base64,", "not a PNG"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "type that is not served"),
        ("data:video/jpeg;base64," + "/9j/," * 5000, "type that is not served"),
        ("data:text/html;base64,PGI+", "type that is not served"),
        ("data:;base64,iVBORw0KGgo=", "type that is not served"),
        ("data:image/png;base64", "not a data URL"),
        ("data:" + "x" * 10_000_000, "not a data URL"),
        ("data:image/png;base64," + "A" * (2 * 2**20), "max_bytes"),
    ],
)
def test_another_form_of_data_url_is_refused(source: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as refused:
        read_data_url(source, LIMITS, param="p")
    assert refused.value.param == "p"
    assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    "source",
    ["", "/etc/passwd", "file:///etc/passwd", "ftp://x/y.png", "//x/y.png", "iVBORw0KGgo=", "http:x"],
)
def test_neither_files_nor_bare_base64_are_read(source: str) -> None:
    with pytest.raises(ImageError, match="neither a data URL"):
        is_remote(source)
