"""A load of text, with streams beside it that send a new image each time and that no figure counts."""

from __future__ import annotations

import asyncio
import base64
import random
import struct
import zlib
from typing import Any

from vinfer.bench.client import Endpoint, complete
from vinfer.bench.figures import Figures
from vinfer.bench.load import Prompts, send_load
from vinfer.errors import AnswerError

IMAGE_SIDE = 64


class Images:
    """An endless sequence of different images, so that no feature cache helps."""

    def __init__(self) -> None:
        # Seeded per process: a server may have seen the images of an earlier run.
        self._random = random.Random()

    def next(self) -> str:
        """Return the data URL of a PNG file of noise."""
        rows = b"".join(b"\0" + self._random.randbytes(3 * IMAGE_SIDE) for _ in range(IMAGE_SIDE))
        # Eight bits per channel, three channels.
        header = struct.pack(">IIBBBBB", IMAGE_SIDE, IMAGE_SIDE, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        file = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        return "data:image/png;base64," + base64.b64encode(file).decode()


async def run_load(
    endpoint: Endpoint,
    prompts: Prompts,
    *,
    streams: int,
    rounds: int,
    fields: dict[str, Any],
    image_streams: int = 0,
) -> Figures:
    """Keep `streams` requests open until each stream has sent `rounds` of them.

    Args:
        image_streams: concurrent requests with a new image each, which no figure counts.

    Raises:
        AnswerError: any request failed.
    """

    async def one_image() -> None:
        body = endpoint.body_with_image(prompts.next(), new_images.next(), **fields)
        await complete(endpoint, body)

    async def one_image_stream() -> None:
        while True:
            await one_image()

    new_images = Images()
    # As many as the load has, so that the server has seen images before the load begins.
    await asyncio.gather(*(one_image() for _ in range(image_streams)))
    images = [asyncio.create_task(one_image_stream()) for _ in range(image_streams)]
    load = await send_load(
        endpoint, lambda: endpoint.body(prompts.next(), **fields), streams=streams, rounds=rounds
    )
    for task in images:
        task.cancel()
    beside = await asyncio.gather(*images, return_exceptions=True)
    for failure in (*load.failures, *(each.message for each in beside if isinstance(each, AnswerError))):
        raise AnswerError(failure)
    return Figures.of(load)
