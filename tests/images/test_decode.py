"""Hostile and odd image files: each gives a short refusal or the image that the reference would get."""

from __future__ import annotations

import io
import re
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tiny.hostile_images import HOSTILE_IMAGES, HOSTILE_LIMITS
from tiny.images import animated, data_url, encoded, every_kind, exif_turned, noise

from vinfer.config import ImagesConfig
from vinfer.errors import ImageError, RequestError
from vinfer.images import decode_image, is_remote, read_data_url
from vinfer.images.container import gif_num_frames, webp_size

LIMITS = ImagesConfig(**HOSTILE_LIMITS)
KINDS = every_kind()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_becomes_the_rgb_of_the_reference(name: str) -> None:
    """As `load_image` of transformers does it."""
    with Image.open(io.BytesIO(KINDS[name])) as image:
        reference = ImageOps.exif_transpose(image).convert("RGB")
    ours = decode_image(KINDS[name], ImagesConfig())
    assert ours.pixels.mode == "RGB"
    assert ours.size == (reference.height, reference.width)
    assert ours.pixels.tobytes() == reference.tobytes()


def test_exif_turns_the_image() -> None:
    assert decode_image(exif_turned(), LIMITS).size == (31, 17)


@pytest.fixture
def no_memory_is_kept() -> Iterator[None]:
    """Assert that Python's allocations return to where they were and stay small on the way."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    yield
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 2**20
    assert peak - before < 80 * 2**20


@pytest.mark.alone
@pytest.mark.parametrize("name", HOSTILE_IMAGES)
@pytest.mark.usefixtures("no_memory_is_kept")
def test_a_hostile_file_is_refused_at_once(name: str) -> None:
    data, reason = HOSTILE_IMAGES[name]
    started = time.monotonic()
    with pytest.raises(ImageError, match=reason) as refused:
        decode_image(data, LIMITS, param="messages[0].content[1].image_url.url")
    assert time.monotonic() - started < 1
    error = refused.value
    assert isinstance(error, RequestError)
    assert (error.status, error.param) == (400, "messages[0].content[1].image_url.url")
    # No heap address, path or decoder message (CVE-2026-22778).
    assert not re.search(r"0x[0-9a-f]{4,}|/\w+/|<|Traceback|BytesIO|PIL", error.message)
    assert error.__context__ is None


def test_a_bomb_of_pixels_costs_no_memory() -> None:
    """Python does not count Pillow's own memory, so the process must not grow by the size of a canvas."""

    def peak_mib() -> int:
        with open("/proc/self/status") as status:
            return int(re.findall(r"VmHWM:\s+(\d+)", status.read())[0]) // 1024

    before = peak_mib()
    for name in ("png bomb", "gif bomb", "webp bomb", "jpeg bomb", "thousand frame webp"):
        with pytest.raises(ImageError):
            decode_image(HOSTILE_IMAGES[name][0], LIMITS)
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


def test_hashes_tell_images_apart_and_files_not() -> None:
    """To vLLM the same bytes with another shape or palette were one image (CVE-2025-46722)."""
    flat = bytes(range(36))
    shapes = [Image.frombytes("RGB", size, flat) for size in ((2, 6), (6, 2), (3, 4), (4, 3), (12, 1))]
    palettes = []
    for shift in (0, 1):
        image = Image.frombytes("P", (4, 4), bytes(i % 4 for i in range(16)))
        image.putpalette([(i * 40 + shift * 7) % 256 for i in range(12)])
        palettes.append(image)
    images = [*shapes, *palettes]
    hashes = [decode_image(encoded(image), LIMITS).content_hash for image in images]
    assert len(set(hashes)) == len(images)
    again = [decode_image(encoded(image, compress_level=1), LIMITS).content_hash for image in images]
    assert again == hashes


@given(st.sampled_from(sorted(KINDS)), st.data())
def test_a_damaged_file_is_an_image_or_a_refusal(name: str, data: st.DataObject) -> None:
    """This holds whatever the decoders raise."""
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


@pytest.mark.parametrize("breaks", ["\n", "\r\n", " ", "\t\n "])
def test_white_space_in_base64_is_skipped(breaks: str) -> None:
    """MIME encoders break lines after 76 characters."""
    head, _, encoded = data_url(PNG).partition(",")
    broken = breaks.join(encoded[i : i + 76] for i in range(0, len(encoded), 76))
    assert len(encoded) > 76
    assert read_data_url(f"{head},{breaks}{broken}{breaks}", LIMITS).size == (4, 5)


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
        (data_url(PNG).rstrip("=") if data_url(PNG).endswith("=") else data_url(PNG) + "=", "base64"),
        (data_url(PNG).replace(";base64,", ",", 1), "without ;base64"),
        ("data:image/png;base64,\u4e00", "base64"),
        ("data:image/png;base64,", "not a PNG"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "of an unsupported type"),
        ("data:video/jpeg;base64," + "/9j/," * 5000, "of an unsupported type"),
        ("data:text/html;base64,PGI+", "of an unsupported type"),
        ("data:;base64,iVBORw0KGgo=", "of an unsupported type"),
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
