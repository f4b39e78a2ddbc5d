"""Which rows of the device's feature array hold which image: encoded once, kept while there is room.

Pure Python bookkeeping for the scheduler, in the order in which work is enqueued. An image is identified by
the hash of its content. Rows of images whose requests are being prefilled are *pinned*. Rows of earlier
images are kept, and the least recently used image is evicted first. Rows can be reused at once: any work
that still reads them was enqueued before the work that overwrites them.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

from vinfer.engine.request import RequestImage


@dataclasses.dataclass(slots=True)
class _Held:
    rows: tuple[int, ...]
    num_pins: int = 0


class FeatureCache:
    """The feature array of one model, row by row.

    Args:
        num_rows: at least the most placeholders that one prompt can have, or a request might wait forever.

    Attributes:
        num_queries: images in requests so far.
        num_hits: those that were already encoded or waiting for the encoder.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._free = list(range(num_rows))
        # In the order in which they were last pinned.
        self._held: OrderedDict[str, _Held] = OrderedDict()
        # Not encoded yet, in order of arrival: an image that is requested again keeps its place.
        self._waiting: dict[str, RequestImage] = {}
        self.num_queries = 0
        self.num_hits = 0

    @property
    def usage_fraction(self) -> float:
        return 1 - len(self._free) / self._num_rows if self._num_rows else 0.0

    def pin(self, images: Sequence[RequestImage]) -> bool:
        """Pin rows for all images of a request, or for none of them if there is no room yet.

        Returns:
            Whether the rows are pinned.
        """
        new = {image.content_hash: image for image in images if image.content_hash not in self._held}
        if not self._make_room(sum(image.num_tokens for image in new.values()), images):
            return False
        for content_hash, image in new.items():
            rows = tuple(self._free.pop() for _ in range(image.num_tokens))
            self._held[content_hash] = _Held(rows)
            self._waiting[content_hash] = image
        for image in images:
            self._held[image.content_hash].num_pins += 1
            self._held.move_to_end(image.content_hash)
        self.num_queries += len(images)
        self.num_hits += len(images) - len(new)
        return True

    def unpin(self, images: Sequence[RequestImage]) -> None:
        """Unpin a request's images: everything that reads them is enqueued, or the request is gone."""
        for image in images:
            held = self._held[image.content_hash]
            held.num_pins -= 1
            if held.num_pins == 0 and image.content_hash in self._waiting:
                del self._waiting[image.content_hash]
                self._forget(image.content_hash)

    def next_to_encode(self, at_most: int) -> list[RequestImage]:
        """Return the images that wait for the encoder, in order of arrival."""
        return list(self._waiting.values())[:at_most]

    def encoded(self, images: Sequence[RequestImage]) -> None:
        """Record that these images are scheduled for encoding: work enqueued later may read them."""
        for image in images:
            del self._waiting[image.content_hash]

    def are_encoded(self, images: Sequence[RequestImage]) -> bool:
        return not any(image.content_hash in self._waiting for image in images)

    def rows_of(self, image: RequestImage) -> tuple[int, ...]:
        """Return the rows of a pinned image, one per placeholder."""
        return self._held[image.content_hash].rows

    def check_integrity(self) -> None:
        """Raise AssertionError if rows were lost or given out twice."""
        rows = [row for held in self._held.values() for row in held.rows]
        assert sorted(rows + self._free) == list(range(self._num_rows)), "rows were lost or shared"
        assert all(self._held[content_hash].num_pins > 0 for content_hash in self._waiting)

    def _make_room(self, num_rows: int, kept: Sequence[RequestImage]) -> bool:
        keep = {image.content_hash for image in kept}
        old = [key for key, held in self._held.items() if held.num_pins == 0 and key not in keep]
        if len(self._free) + sum(len(self._held[key].rows) for key in old) < num_rows:
            return False
        for key in old:
            if len(self._free) >= num_rows:
                break
            self._forget(key)
        return True

    def _forget(self, key: str) -> None:
        self._free += self._held.pop(key).rows
