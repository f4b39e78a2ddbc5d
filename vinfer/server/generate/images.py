"""Finds, fetches, decodes and prepares the images of a conversation before its prompt is written.

Runs on the event loop, as does fetching; decoding and preparing go to worker threads. `vinfer.images` is
imported where it is used, so that a text-only server does not load NumPy or Pillow for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vinfer.bundle.manifest import ImageInput
from vinfer.config import ImagesConfig
from vinfer.engine.request import RequestImage
from vinfer.errors import ImageError, RequestError
from vinfer.image_processing import ImageProcessing
from vinfer.server.fields.content_parts import ImageSource
from vinfer.server.fields.messages import ChatMessage
from vinfer.server.model_table import ServedModel
from vinfer.server.services import Services

if TYPE_CHECKING:
    from vinfer.images import PreparedImage


def image_sources(messages: Sequence[ChatMessage], path: str) -> list[ImageSource]:
    """Return the images of messages, in order; `path` is the path of the messages."""
    return [
        part.image_source(f"{path}[{i}].content[{j}]")
        for i, message in enumerate(messages)
        for j, part in enumerate(message.content or ())
        if part.is_image
    ]


async def prepare_images(
    services: Services, sources: Sequence[ImageSource], model: ServedModel
) -> tuple[PreparedImage, ...]:
    """Prepare every image of a conversation, in order.

    Raises:
        ImageError: too many images, or one that cannot be fetched, decoded or used by the model.
        RequestError: the model takes no images.
    """
    if not sources:
        return ()
    images = _image_input(model, sources[0][1])
    limits = services.config.images
    if len(sources) > limits.max_per_request:
        raise ImageError(
            f"the request has {len(sources)} images; server.images.max_per_request is "
            f"{limits.max_per_request}: send fewer",
            param=sources[limits.max_per_request][1],
        )

    from vinfer.images import is_remote

    async def prepare(source: str, param: str) -> PreparedImage:
        if is_remote(source, param=param):
            data = await services.image_fetcher.fetch(source, param=param)
            return await services.in_worker(_from_file, data, limits, images.processing, param)
        return await services.in_worker(_from_data_url, source, limits, images.processing, param)

    tasks = [asyncio.create_task(prepare(*source)) for source in sources]
    try:
        return tuple(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def request_images(
    prompt_ids: Sequence[int], images: Sequence[PreparedImage], model: ServedModel
) -> tuple[RequestImage, ...]:
    """Return where each image is in a prompt: its placeholders are one run of tokens.

    Raises:
        RequestError: the tokenizer turned the placeholders into other tokens.
    """
    if not images:
        return ()
    token_id = _image_input(model, None).token_id
    places = [place for place, found in enumerate(prompt_ids) if found == token_id]
    placed = []
    first = 0
    for image in images:
        own = places[first : first + image.num_tokens]
        if len(own) != image.num_tokens or own[-1] - own[0] != image.num_tokens - 1:
            break
        placed.append(
            RequestImage(
                content_hash=image.content_hash,
                start=own[0],
                num_tokens=image.num_tokens,
                pixels=image.pixels,
                token_grid=image.token_grid,
            )
        )
        first += image.num_tokens
    if len(placed) != len(images) or first != len(places):
        raise RequestError(
            "the images in the messages do not match the placeholders in the tokenized prompt",
            param="messages",
        )
    return tuple(placed)


def _image_input(model: ServedModel, param: str | None) -> ImageInput:
    if model.manifest.images is None:
        raise RequestError(
            f"{param} is an image; model {model.name} takes only text: use text parts", param=param
        )
    return model.manifest.images


def _from_file(data: bytes, limits: ImagesConfig, record: ImageProcessing, param: str) -> PreparedImage:
    from vinfer.images import decode_image, preprocess

    return preprocess(decode_image(data, limits, param=param), record, param=param)


def _from_data_url(source: str, limits: ImagesConfig, record: ImageProcessing, param: str) -> PreparedImage:
    from vinfer.images import preprocess, read_data_url

    return preprocess(read_data_url(source, limits, param=param), record, param=param)
