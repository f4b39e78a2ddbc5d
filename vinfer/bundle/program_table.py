"""Chooses the compiled program that runs a dispatch; nothing else does."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from vinfer.bundle.programs import ProgramKind, ProgramShape


class ProgramTable:
    """The compiled programs of one bundle, to choose from.

    Args:
        shapes: of every program.
        max_features: for every image encoder, the most features of one image.

    Attributes:
        is_single_shape: whether there is one shape of each kind, and nothing is verified, so that all
            requests use the same programs.
        steps: most decode steps of one dispatch; 0 without decode programs.
        max_draft_tokens: most tokens of a draft; 0 without verify programs.
        max_images: most images of one encoder dispatch; 0 without encoders.
    """

    def __init__(
        self, shapes: Iterable[ProgramShape], max_features: Mapping[ProgramShape, int] | None = None
    ) -> None:
        self._by_kind: dict[ProgramKind, list[ProgramShape]] = {}
        for shape in shapes:
            self._by_kind.setdefault(shape.kind, []).append(shape)
        self._max_features = dict(max_features or {})
        # Of each dispatch that has been asked for: few, and asked for at every step.
        self._chosen: dict[tuple[ProgramKind, int, int], ProgramShape] = {}
        # The bits of verify are not those of decode.
        self.is_single_shape = "verify" not in self._by_kind and all(
            len(of_kind) == 1 for of_kind in self._by_kind.values()
        )
        self.steps = max(self.lengths("decode"), default=0)
        self.max_draft_tokens = max(self.lengths("verify"), default=1) - 1
        self.max_images = max((shape.rows for shape in self._max_features), default=0)

    def of_kind(self, kind: ProgramKind) -> tuple[ProgramShape, ...]:
        """Return the programs of a kind."""
        return tuple(self._by_kind.get(kind, ()))

    def lengths(self, kind: ProgramKind) -> set[int]:
        """Return the lengths that programs of a kind have; empty if there is none."""
        return {shape.length for shape in self._by_kind.get(kind, ())}

    def max_rows(self, kind: ProgramKind) -> int:
        """Return the most rows of one dispatch; 0 if there is no program of the kind."""
        return max((shape.rows for shape in self._by_kind.get(kind, ())), default=0)

    def has(self, kind: ProgramKind, *, rows: int, length: int) -> bool:
        """Whether a program of exactly this length takes so many rows."""
        return any(shape.rows >= rows and shape.length == length for shape in self._by_kind.get(kind, ()))

    def smallest(self, kind: ProgramKind) -> ProgramShape | None:
        """Return the program of a kind with the least work; None if there is none."""
        return min(
            self._by_kind.get(kind, ()),
            key=lambda shape: (shape.rows * shape.length, shape.rows),
            default=None,
        )

    def choose(self, kind: ProgramKind, *, rows: int, length: int) -> ProgramShape:
        """Return the cheapest program that covers a dispatch.

        Args:
            rows: prompts or slots of the dispatch.
            length: longest chunk of the dispatch in tokens; most steps for decode.
        """
        chosen = self._chosen.get((kind, rows, length))
        if chosen is None:
            covering = [
                shape
                for shape in self._by_kind.get(kind, ())
                if shape.rows >= rows and shape.length >= length
            ]
            if not covering:
                raise AssertionError(f"no {kind} program covers rows={rows} length={length}")
            chosen = min(covering, key=lambda shape: (shape.rows * shape.length, shape.length))
            self._chosen[kind, rows, length] = chosen
        return chosen

    def choose_encoder(self, num_features: Sequence[int]) -> tuple[ProgramShape, int]:
        """Choose the image encoder for the first waiting image, and how many of the waiting ones it takes.

        The encoder is for images no larger than the first one needs. Its batch is the smallest that takes all
        of the following images that fit.

        Args:
            num_features: the features of each waiting image, in order.
        """
        most = min(number for number in self._max_features.values() if number >= num_features[0])
        encoders = sorted(
            (shape for shape, number in self._max_features.items() if number == most),
            key=lambda shape: shape.rows,
        )
        waiting = len(list(itertools.takewhile(lambda number: number <= most, num_features)))
        shape = next((shape for shape in encoders if shape.rows >= waiting), encoders[-1])
        return shape, min(shape.rows, waiting)
