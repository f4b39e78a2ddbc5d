"""The image half of a model in our terms: its encoder, its placeholder token, and how pictures are prepared.

Runs in the build half, on any thread. Knows no model family; `families/` fills these in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from vinfer.image_processing import ImageProcessing


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipFacts:
    """A CLIP vision tower and the two-layer projector behind it, as LLaVA has them.

    Attributes:
        image_size: side of the square that the tower takes, in pixels.
        patch_size: side of a patch, in pixels.
        activation, projector_activation: transformers' names.
        feature_layers: which hidden states are joined; 0 is what enters the first layer.
        has_class_token: the class token's feature is a feature of the picture too.
        out_size: hidden size of the decoder.
    """

    num_layers: int
    num_heads: int
    hidden_size: int
    inner_size: int
    num_channels: int
    image_size: int
    patch_size: int
    norm_epsilon: float
    activation: str
    feature_layers: tuple[int, ...]
    has_class_token: bool
    projector_activation: str
    projector_has_bias: bool
    out_size: int

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_features(self) -> int:
        """Features of one picture, each of which stands at one placeholder."""
        return self.num_patches + self.has_class_token


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VisionFacts:
    """What a model with images has besides its decoder.

    Attributes:
        decoder_type: model type of the decoder, a key of `families.FAMILIES`.
        image_token_id: the placeholder whose embedding is replaced by a feature.
        image_shape: (channels, height, width) of a picture as the encoder takes it.
        read_processing: reads the record of the checkpoint's processor files from its directory.
    """

    decoder_type: str
    encoder: ClipFacts
    image_token_id: int
    image_shape: tuple[int, int, int]
    read_processing: Callable[[Path], ImageProcessing]
