"""The compiled programs of a bundle: their shapes, which of them a configuration needs, and which one runs.

Pure functions over shapes. Only `choose_program` and `choose_encoder` choose a program.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vinfer.bundle.frozen import Frozen

ProgramKind = Literal["set_slot", "copy_slot", "encode_images", "prefill", "score", "embed", "decode"]


class ProgramShape(Frozen):
    """What makes one compiled program different from another.

    Attributes:
        rows: prompts of a prefill, score or embed, slots of a decode dispatch, images of encode_images; 0
            for set_slot and copy_slot.
        length: padded prompt tokens of a prefill, score or embed, most steps of a decode dispatch; else 0.
        kv_length: rows of the KV cache that attention reads; 0 where there is none.
        image: (channels, height, width) of each image of encode_images; else empty.
    """

    kind: ProgramKind
    rows: int = 0
    length: int = 0
    kv_length: int = 0
    image: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        if self.rows == 0:
            return self.kind
        sizes = (self.rows, *self.image) if self.image else (self.rows, self.length, self.kv_length)
        return f"{self.kind}[{','.join(map(str, sizes))}]"

    @property
    def uses_weights(self) -> bool:
        return self.kind not in ("set_slot", "copy_slot", "encode_images")

    @property
    def uses_image_features(self) -> bool:
        """Whether it is the image encoder's: with the encoder's weights, and features in the place of kv."""
        return self.kind == "encode_images"

    @property
    def uses_kv(self) -> bool:
        return self.kind not in ("set_slot", "encode_images")

    @property
    def uses_state(self) -> bool:
        return self.kind not in ("copy_slot", "embed", "encode_images")


def plan_programs(
    *,
    prefill_shapes: Iterable[tuple[int, int]],
    slot_buckets: Iterable[int],
    steps: int,
    kv_buckets: Iterable[int],
    prompt_logprobs: bool = False,
    embeddings: bool = False,
    vision_shapes: Iterable[tuple[int, int, int, int]] = (),
) -> tuple[ProgramShape, ...]:
    """List the programs that a configuration needs; `choose_program` is total over them.

    Args:
        prefill_shapes: (batch_size, prefill_length) pairs.
        slot_buckets: numbers of slots that one decode dispatch may run.
        steps: most decode steps per dispatch.
        kv_buckets: lengths of the KV cache that attention may read, the last one max_model_len.
        prompt_logprobs: score programs too, of the shortest and of the longest prefill length.
        embeddings: embed programs too, of the shortest and of the longest prefill length, for one prompt and
            for the largest batch where that has these lengths.
        vision_shapes: (batch_size, channels, height, width) of image encoders.
    """
    kv_buckets = sorted(kv_buckets)
    shapes = [ProgramShape(kind="set_slot"), ProgramShape(kind="copy_slot")]
    shapes += [
        ProgramShape(kind="encode_images", rows=rows, image=tuple(image))
        for rows, *image in sorted(vision_shapes)
    ]
    by_batch: dict[int, list[int]] = {1: []}
    for batch, length in sorted(prefill_shapes):
        by_batch.setdefault(batch, []).append(length)
    # One prompt alone must always find a program: every length exists with batch 1.
    by_batch[1] = sorted({length for lengths in by_batch.values() for length in lengths})
    for batch, lengths in sorted(by_batch.items()):
        shapes += _prompt_shapes("prefill", batch, lengths, kv_buckets)
    if prompt_logprobs:
        shapes += _prompt_shapes("score", 1, {by_batch[1][0], by_batch[1][-1]}, kv_buckets)
    if embeddings:
        ends = {by_batch[1][0], by_batch[1][-1]}
        for batch in sorted({1, max(by_batch)}):
            # A length that one prompt alone does not have no batch would ever be put together for.
            shapes += _prompt_shapes("embed", batch, ends & set(by_batch[batch]), kv_buckets)
    shapes += [
        ProgramShape(kind="decode", rows=rows, length=steps, kv_length=kv)
        for rows in sorted(slot_buckets)
        for kv in kv_buckets
    ]
    return tuple(shapes)


def is_single_shape(shapes: Iterable[ProgramShape]) -> bool:
    """Say whether there is one shape of each kind, so that every request goes through the same programs."""
    kinds = [shape.kind for shape in shapes]
    return len(kinds) == len(set(kinds))


def _prompt_shapes(
    kind: ProgramKind, rows: int, lengths: Iterable[int], kv_buckets: Sequence[int]
) -> list[ProgramShape]:
    """Combine lengths with every kv_length that a chunk too long for the length before can need."""
    shapes = []
    shorter = 0
    for length in sorted(lengths):
        shapes += [
            ProgramShape(kind=kind, rows=rows, length=length, kv_length=kv)
            for kv in kv_buckets
            if kv > shorter
        ]
        shorter = length
    return shapes


def choose_program(
    shapes: Iterable[ProgramShape], kind: ProgramKind, *, rows: int, length: int, kv_length: int
) -> ProgramShape:
    """Return the cheapest compiled program that covers a dispatch.

    Args:
        rows: prompts or slots of the dispatch.
        length: longest chunk of the dispatch in tokens; 1 for decode.
        kv_length: rows of the KV cache in use when the dispatch ends.
    """
    covering = [
        shape
        for shape in shapes
        if shape.kind == kind
        and shape.rows >= rows
        and shape.length >= length
        and shape.kv_length >= kv_length
    ]
    if not covering:
        raise AssertionError(f"no {kind} program covers rows={rows} length={length} kv_length={kv_length}")
    return min(covering, key=lambda s: (s.rows * s.length, s.kv_length))


def choose_encoder(
    max_features: Mapping[ProgramShape, int], num_features: Sequence[int]
) -> tuple[ProgramShape, int]:
    """Choose the image encoder for the first of the images that wait, and how many of them it takes.

    It is one for images no larger than the first one needs, as small as takes all that are next and fit.

    Args:
        max_features: of every encoder, the most features of one image.
        num_features: of each image, in the order in which they wait.
    """
    most = min(number for number in max_features.values() if number >= num_features[0])
    encoders = sorted((s for s, number in max_features.items() if number == most), key=lambda s: s.rows)
    waiting = len(list(itertools.takewhile(lambda number: number <= most, num_features)))
    shape = next((shape for shape in encoders if shape.rows >= waiting), encoders[-1])
    return shape, min(shape.rows, waiting)
