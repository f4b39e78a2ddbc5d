"""What the programs need from a model and its image encoder: the seam between programs and modeling code.

Protocols only. `easydel.model` and `vision.encoders` implement them.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax

from vinfer.bundle.manifest import ArraySpec
from vinfer.bundle.programs import ProgramShape
from vinfer.compiler.kv_cache import Rows
from vinfer.compiler.vision.features import ImageFeatures

Arrays = tuple[jax.Array, ...]


class Model(Protocol):
    """What the programs need from a model."""

    max_model_len: int
    vocab_size: int
    hidden_size: int

    def forward(
        self,
        weights: Arrays,
        kv: Arrays,
        tokens: jax.Array,
        rows: Rows,
        images: ImageFeatures | None = None,
    ) -> tuple[Arrays, jax.Array]: ...

    def copy_pages(self, kv: Arrays, sources: jax.Array, targets: jax.Array) -> Arrays: ...

    def logits(self, weights: Arrays, hidden: jax.Array) -> jax.Array: ...


class ImageEncoder(Protocol):
    """What the programs need from the image half of a model.

    Attributes:
        hidden_size: hidden size of the decoder.
    """

    hidden_size: int

    def max_features(self, shape: ProgramShape) -> int:
        """Return the maximum number of placeholders of one image."""
        ...

    def inputs(self, shape: ProgramShape) -> tuple[ArraySpec, ...]: ...

    def encode(self, weights: Arrays, *images: jax.Array) -> jax.Array:
        """Return [images, max features, hidden_size]."""
        ...


@dataclasses.dataclass(frozen=True)
class Images:
    """The image half of a bundle: its encoder, and where features are stored (see `ImageFeatures`).

    Attributes:
        attends_both_ways: each token of an image sees all the others; no chunk splits an image.
        rotates_by_axes: the model's tokens rotate by time, row and column: see `Rows.rope_positions`.
    """

    encoder: ImageEncoder
    pool: ArraySpec
    attends_both_ways: bool = False
    rotates_by_axes: bool = False
