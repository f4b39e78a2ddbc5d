"""The compiled programs of a bundle: their shapes, which a configuration needs, and what their codes mean.

Pure functions over shapes. `ProgramTable` chooses among them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Literal

from vinfer.bundle.frozen import Frozen

ProgramKind = Literal["set_slot", "copy_page", "encode_images", "prefill", "score", "embed", "decode"]

NO_TOKEN = -1
"""In a program's output `tokens`: the row was not active."""


class Finish(enum.IntEnum):
    """The values of a program's output `finished`, for each step of each row."""

    NOT = 0
    STOP = 1
    LENGTH = 2


class ProgramShape(Frozen):
    """What makes one compiled program different from another.

    Attributes:
        rows: prompts of a prefill, score or embed dispatch, slots of a decode dispatch, or images of
            encode_images; 0 for set_slot and copy_page.
        length: padded prompt tokens of a prefill, score or embed dispatch, or most steps of a decode
            dispatch; otherwise 0.
        image: (channels, height, width) of each image of encode_images; otherwise empty.
    """

    kind: ProgramKind
    rows: int = 0
    length: int = 0
    image: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        if self.rows == 0:
            return self.kind
        sizes = (self.rows, *self.image) if self.image else (self.rows, self.length)
        return f"{self.kind}[{','.join(map(str, sizes))}]"

    @property
    def uses_weights(self) -> bool:
        return self.kind not in ("set_slot", "copy_page", "encode_images")

    @property
    def uses_image_features(self) -> bool:
        """Whether it is an image encoder: it takes the encoder's weights, and the features instead of kv."""
        return self.kind == "encode_images"

    @property
    def uses_kv(self) -> bool:
        return self.kind not in ("set_slot", "encode_images")

    @property
    def uses_state(self) -> bool:
        return self.kind not in ("copy_page", "embed", "encode_images")


def plan_programs(
    *,
    prefill_shapes: Iterable[tuple[int, int]],
    slot_buckets: Iterable[int],
    steps: int,
    prompt_logprobs: bool = False,
    embeddings: bool = False,
    vision_shapes: Iterable[tuple[int, int, int, int]] = (),
) -> tuple[ProgramShape, ...]:
    """Return the programs that a configuration needs; `ProgramTable.choose` finds one for every dispatch.

    Args:
        prefill_shapes: (batch_size, prefill_length) pairs.
        slot_buckets: numbers of slots that one decode dispatch may run.
        steps: most decode steps per dispatch.
        prompt_logprobs: add score programs for the shortest and the longest prefill length.
        embeddings: add embed programs for the shortest and the longest prefill length, for one prompt and for
            the largest batch if it has these lengths.
        vision_shapes: (batch_size, channels, height, width) of image encoders.
    """
    shapes = [ProgramShape(kind="set_slot"), ProgramShape(kind="copy_page")]
    shapes += [
        ProgramShape(kind="encode_images", rows=rows, image=tuple(image))
        for rows, *image in sorted(vision_shapes)
    ]
    by_batch: dict[int, list[int]] = {1: []}
    for batch, length in sorted(prefill_shapes):
        by_batch.setdefault(batch, []).append(length)
    # A single prompt must always find a program, so every length exists with batch 1.
    by_batch[1] = sorted({length for lengths in by_batch.values() for length in lengths})
    for batch, lengths in sorted(by_batch.items()):
        shapes += _prompt_shapes("prefill", batch, lengths)
    if prompt_logprobs:
        shapes += _prompt_shapes("score", 1, {by_batch[1][0], by_batch[1][-1]})
    if embeddings:
        ends = {by_batch[1][0], by_batch[1][-1]}
        for batch in sorted({1, max(by_batch)}):
            # No batch is formed for a length that a single prompt cannot use.
            shapes += _prompt_shapes("embed", batch, ends & set(by_batch[batch]))
    shapes += [ProgramShape(kind="decode", rows=rows, length=steps) for rows in sorted(slot_buckets)]
    return tuple(shapes)


def _prompt_shapes(kind: ProgramKind, rows: int, lengths: Iterable[int]) -> list[ProgramShape]:
    return [ProgramShape(kind=kind, rows=rows, length=length) for length in sorted(lengths)]
