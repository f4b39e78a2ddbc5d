"""Names the contents of pages: a chain of hashes over tokens, images and whoever may share them.

Pure Python, engine thread. Two pages with the same key hold the same keys and values, because a position's
depend only on the tokens and images up to it.
"""

from __future__ import annotations

import array
import hashlib
import secrets
from collections.abc import Sequence

from vinfer.engine.request import RequestImage

_SEED = secrets.token_bytes(32)
"""New in every process, so that no client can compute a key."""


class PrefixKeys:
    """The keys of the pages of one request, each hashed once.

    Args:
        scope: requests share pages only with requests of the same scope.
        tokens: the prompt and, as they become known, the tokens of the answer; the caller appends to it.
        images: those of the prompt.
        page_size: positions of a page.
    """

    def __init__(
        self, scope: str, tokens: Sequence[int], images: Sequence[RequestImage], page_size: int
    ) -> None:
        self._tokens = tokens
        self._images = images
        self._page_size = page_size
        self._chain = [hashlib.sha256(_SEED + scope.encode()).digest()]
        self._parts: dict[int, bytes] = {}

    def of_page(self, place: int) -> bytes:
        """Return the key of a full page, the `place`-th of the request; its tokens must be known."""
        while len(self._chain) <= place + 1:
            start = (len(self._chain) - 1) * self._page_size
            self._chain.append(self._key(self._chain[-1], start, start + self._page_size))
        return self._chain[place + 1]

    def of_part(self, end: int) -> bytes:
        """Return the key of the first positions of a page, up to `end`, which is not the end of a page."""
        if end not in self._parts:
            place = end // self._page_size
            before = self.of_page(place - 1) if place else self._chain[0]
            self._parts[end] = self._key(before, place * self._page_size, end)
        return self._parts[end]

    def _key(self, before: bytes, start: int, end: int) -> bytes:
        assert end <= len(self._tokens)
        # The length comes first, so that no tokens can be mistaken for the image that follows.
        key = hashlib.sha256(before + (end - start).to_bytes(4, "big"))
        key.update(array.array("q", self._tokens[start:end]).tobytes())
        for image in self._images:
            if image.start < end and image.start + image.num_tokens > start:
                key.update(repr((image.start, image.num_tokens, image.token_grid)).encode())
                key.update(image.content_hash.encode())
        return key.digest()
