"""Derives shapes from a model's config: prefill shapes and slot buckets.

Pure arithmetic on plain integers, on any thread. It does not know which programs exist for a shape.
"""

from __future__ import annotations

from typing import NamedTuple

from vinfer.config.schema import ModelConfig

DEFAULT_PREFILL_LENGTHS = (64, 256, 1024)
DETERMINISTIC_PREFILL_LENGTH = 256


class PrefillShape(NamedTuple):
    """Shape key of a text prefill: `batch_size` prompts padded to `length` tokens."""

    batch_size: int
    length: int


class VisionShape(NamedTuple):
    """Shape key of an image encoder: `[batch_size, channels, height, width]`, in pixels."""

    batch_size: int
    channels: int
    height: int
    width: int


def prefill_shapes(model: ModelConfig, max_model_len: int | None) -> tuple[PrefillShape, ...]:
    """Expand `precompile` into its text shapes: sorted, unique, every combination within an entry.

    Args:
        max_model_len: the limit of the default lengths; None if it is not known yet.
    """
    defaults = (DETERMINISTIC_PREFILL_LENGTH,) if model.deterministic else DEFAULT_PREFILL_LENGTHS
    default_lengths = tuple(min(length, max_model_len or length) for length in defaults)
    return tuple(
        sorted(
            {
                PrefillShape(batch_size, length)
                for entry in model.precompile
                for batch_size in entry.batch_size
                for length in entry.prefill_length or default_lengths
            }
        )
    )


def vision_shapes(model: ModelConfig) -> tuple[VisionShape, ...]:
    """Return the image shapes of `precompile`: sorted and unique; empty for a text model."""
    return tuple(
        sorted(
            {
                VisionShape(vision.batch_size, vision.channels, vision.height, vision.width)
                for entry in model.precompile
                for vision in entry.vision or ()
            }
        )
    )


def slot_buckets(num_slots: int, dp: int, *, growth: int) -> tuple[int, ...]:
    """Return the slot counts that decode is compiled for: 1, times `growth`, up to `num_slots`.

    With dp > 1 there is only `num_slots`, because fewer slots would leave devices without a row.
    """
    sizes = []
    size = 1 if dp == 1 else num_slots
    while size < num_slots:
        sizes.append(size)
        size *= growth
    return (*sizes, num_slots)
