"""The image half of a model: its encoder, its placeholder token, and how images are prepared.

Runs in the build half, on any thread. Knows no model family; `families/` fills these in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from vinfer.image_processing import ImageProcessing


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TowerFacts:
    """A CLIP-style vision tower: patches, learned positions, bidirectional attention.

    Attributes:
        is_clip: CLIP's, which has a class token and a norm before its layers; otherwise SigLIP's, which has a
            bias on its patches and a norm after its layers.
        image_size: side of the square that the tower takes, in pixels.
        patch_size: side of a patch, in pixels.
        activation: transformers' name.
    """

    is_clip: bool
    num_layers: int
    num_heads: int
    hidden_size: int
    inner_size: int
    num_channels: int
    image_size: int
    patch_size: int
    norm_epsilon: float
    activation: str

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        """Number of patches, plus CLIP's class token."""
        return self.patches_per_side**2 + self.is_clip

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.num_channels, self.image_size, self.image_size

    @property
    def shape_words(self) -> str:
        return "x".join(map(str, self.image_shape))


class EncoderFacts(Protocol):
    """What all encoders have in common."""

    def max_features(self, image: tuple[int, ...]) -> int:
        """Return the maximum number of features of one image; each takes one placeholder.

        Args:
            image: (channels, height, width) of the encoder program.
        """
        ...

    def nearest_shape(self, image: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the shape nearest to an image's that an encoder program may have."""
        ...

    @property
    def shape_words(self) -> str:
        """The shapes that encoder programs may have."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _TowerEncoder:
    """A tower for images of one size, and what makes features of its patches.

    Attributes:
        out_size: hidden size of the decoder.
    """

    tower: TowerFacts
    out_size: int

    @property
    def num_features(self) -> int:
        raise NotImplementedError

    def max_features(self, image: tuple[int, ...]) -> int:
        return self.num_features

    def nearest_shape(self, image: tuple[int, ...]) -> tuple[int, int, int]:
        return self.tower.image_shape

    @property
    def shape_words(self) -> str:
        return self.tower.shape_words


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LlavaFacts(_TowerEncoder):
    """A vision tower and the two-layer projector behind it, as LLaVA has them.

    Attributes:
        feature_layers: which hidden states are joined; 0 is what enters the first layer.
        drops_first: the first position, CLIP's class token, is not a feature.
        projector_norm_epsilon: epsilon of the projector's norm; None if it has none.
        projector_activation: transformers' name.
    """

    feature_layers: tuple[int, ...]
    drops_first: bool
    projector_norm_epsilon: float | None = None
    projector_activation: str
    projector_has_bias: bool

    @property
    def num_features(self) -> int:
        return self.tower.num_positions - self.drops_first


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Facts(_TowerEncoder):
    """A vision tower, the mean over squares of its patches, a norm and a projection.

    Attributes:
        features_per_side: squares along a side of the image; they divide the tower's patches.
    """

    features_per_side: int

    @property
    def num_features(self) -> int:
        return self.features_per_side**2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Qwen2VLFacts:
    """Qwen2-VL's tower: patches of an image of any size, rotated by row and column, merged in squares.

    Qwen2.5-VL's layers have gated feed-forwards and RMS norms, and most of them have windows.

    Attributes:
        is_gated: whether this is Qwen2.5-VL's tower.
        full_layers: layers in which a patch sees the whole image; in other layers only its window.
        window_size: side of a window in features; windows tile the image from its first row and column.
        hidden_size, inner_size: of the tower's layers.
        temporal_patch_size: frames per patch.
        merge_size: side of the square of patches that becomes one feature.
        activation: transformers' name.
        out_size: hidden size of the decoder.
    """

    num_layers: int
    num_heads: int
    hidden_size: int
    inner_size: int
    num_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    activation: str
    out_size: int
    is_gated: bool = False
    full_layers: tuple[int, ...]
    window_size: int = 1

    @property
    def factor(self) -> int:
        """Both sides of every image are multiples of this, in pixels."""
        return self.patch_size * self.merge_size

    @property
    def patch_values(self) -> int:
        """Number of values in one patch."""
        return self.num_channels * self.temporal_patch_size * self.patch_size**2

    def max_features(self, image: tuple[int, ...]) -> int:
        _, height, width = image
        return height * width // self.factor**2

    def nearest_shape(self, image: tuple[int, ...]) -> tuple[int, int, int]:
        height, width = (max(round(side / self.factor), 1) * self.factor for side in image[1:])
        return self.num_channels, height, width

    @property
    def shape_words(self) -> str:
        return f"{self.num_channels} channels whose height and width are multiples of {self.factor}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VisionFacts:
    """What a model with images has besides its decoder.

    Attributes:
        decoder_type: model type of the decoder, a key of `families.FAMILIES`.
        image_token_id: the placeholder whose embedding is replaced by a feature.
        image_shape: (channels, height, width) of an image as the encoder takes it; None if images have
            many sizes and an encoder's shape limits them.
        read_processing: reads the image processing settings from the checkpoint's directory.
        attends_both_ways: each placeholder of an image attends to all others of that image, including later
            ones, so it must process an image as a whole.
    """

    decoder_type: str
    encoder: LlavaFacts | Gemma3Facts | Qwen2VLFacts
    image_token_id: int
    image_shape: tuple[int, int, int] | None
    read_processing: Callable[[Path], ImageProcessing]
    attends_both_ways: bool = False
