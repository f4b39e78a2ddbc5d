"""Which rows of the devices' feature array hold which image: encoded once, kept while there is room.

Pure Python bookkeeping in the order in which work is enqueued, for the scheduler. An image is known by the
hash of its content. Rows belong to images of requests that are being prefilled (they are *pinned*), and to
images of earlier requests, of which the one not asked for the longest makes room first. Rows may be given
away at once: what still reads them was enqueued before what overwrites them.
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
        num_rows: at least as many as one prompt can have placeholders, or a request might wait for ever.

    Attributes:
        num_queries: images that requests brought.
        num_hits: those of them that were there already, or about to be.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._free = list(range(num_rows))
        # The one pinned last stands last.
        self._held: OrderedDict[str, _Held] = OrderedDict()
        # Not encoded yet, in the order in which they came: being asked for again costs nobody his place.
        self._waiting: dict[str, RequestImage] = {}
        self.num_queries = 0
        self.num_hits = 0

    @property
    def usage_fraction(self) -> float:
        return 1 - len(self._free) / self._num_rows if self._num_rows else 0.0

    def pin(self, images: Sequence[RequestImage]) -> bool:
        """Hold rows for all images of a request, or for none where there is no room yet.

        Returns:
            Whether the rows are held.
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
        """Let go of a request's images: all that reads them is enqueued, or the request is gone."""
        for image in images:
            held = self._held[image.content_hash]
            held.num_pins -= 1
            if held.num_pins == 0 and image.content_hash in self._waiting:
                del self._waiting[image.content_hash]
                self._forget(image.content_hash)

    def next_to_encode(self, at_most: int) -> list[RequestImage]:
        """Return images that wait for the encoder, in the order in which they came."""
        return list(self._waiting.values())[:at_most]

    def encoded(self, images: Sequence[RequestImage]) -> None:
        """Say that the encoding of these images is planned: what comes later may read it."""
        for image in images:
            del self._waiting[image.content_hash]

    def are_encoded(self, images: Sequence[RequestImage]) -> bool:
        return not any(image.content_hash in self._waiting for image in images)

    def rows_of(self, image: RequestImage) -> tuple[int, ...]:
        """Return the rows of a pinned image, one per placeholder."""
        return self._held[image.content_hash].rows

    def check_integrity(self) -> None:
        """Raise AssertionError where rows were lost or given away twice."""
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
