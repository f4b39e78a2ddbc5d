"""The compiled programs of a bundle: their shapes, which of them a configuration needs, and which one runs.

Pure functions over shapes. Only `choose_program` and `choose_encoder` choose a program.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from vinfer.bundle.frozen import Frozen

ProgramKind = Literal["set_slot", "copy_page", "encode_images", "prefill", "score", "embed", "decode"]


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
    """Return the programs that a configuration needs; `choose_program` finds one for every dispatch.

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


def is_single_shape(shapes: Iterable[ProgramShape]) -> bool:
    """Return whether there is one shape of each kind, so that all requests use the same programs."""
    kinds = [shape.kind for shape in shapes]
    return len(kinds) == len(set(kinds))


def _prompt_shapes(kind: ProgramKind, rows: int, lengths: Iterable[int]) -> list[ProgramShape]:
    return [ProgramShape(kind=kind, rows=rows, length=length) for length in sorted(lengths)]


def choose_program(
    shapes: Iterable[ProgramShape], kind: ProgramKind, *, rows: int, length: int
) -> ProgramShape:
    """Return the cheapest compiled program that covers a dispatch.

    Args:
        rows: prompts or slots of the dispatch.
        length: longest chunk of the dispatch in tokens; 1 for decode.
    """
    covering = [
        shape for shape in shapes if shape.kind == kind and shape.rows >= rows and shape.length >= length
    ]
    if not covering:
        raise AssertionError(f"no {kind} program covers rows={rows} length={length}")
    return min(covering, key=lambda shape: (shape.rows * shape.length, shape.length))


def choose_encoder(
    max_features: Mapping[ProgramShape, int], num_features: Sequence[int]
) -> tuple[ProgramShape, int]:
    """Choose the image encoder for the first waiting image, and how many of the waiting images it takes.

    The encoder is for images no larger than the first one needs. Its batch is the smallest that takes all of
    the following images that fit.

    Args:
        max_features: for every encoder, the most features of one image.
        num_features: the features of each waiting image, in order.
    """
    most = min(number for number in max_features.values() if number >= num_features[0])
    encoders = sorted((s for s, number in max_features.items() if number == most), key=lambda s: s.rows)
    waiting = len(list(itertools.takewhile(lambda number: number <= most, num_features)))
    shape = next((shape for shape in encoders if shape.rows >= waiting), encoders[-1])
    return shape, min(shape.rows, waiting)
