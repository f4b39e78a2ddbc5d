"""The images of a request: read, fetched, decoded within limits, and made into the arrays a model takes.

Part of the run half; imports neither JAX, torch nor transformers. Its public interface:

    is_remote(source)                                  data or http(s) URL? Anything else is an ImageError
    read_data_url(source, limits, param=) -> DecodedImage             worker thread
    await ImageFetcher(limits).fetch(source, param=) -> bytes         event loop
    decode_image(data, limits, param=) -> DecodedImage                worker thread
    preprocess(image, record, param=) -> PreparedImage                worker thread

`limits` is the config's `server.images`, `record` a `vinfer.image_processing` record, and `param` the path of
the request field, such as `messages[0].content[1].image_url.url`. All raise `ImageError`, a 400. Its message
reveals nothing about the image's content, this machine or the network.
"""

from __future__ import annotations

from vinfer.images.decode import DecodedImage, decode_image
from vinfer.images.fetch import ImageFetcher
from vinfer.images.preprocess import PreparedImage, preprocess
from vinfer.images.source import is_remote, read_data_url

__all__ = [
    "DecodedImage",
    "ImageFetcher",
    "PreparedImage",
    "decode_image",
    "is_remote",
    "preprocess",
    "read_data_url",
]
