"""The `Checkpoint` protocol: one checkpoint, wherever its weights come from.

Runs in the build half, on any thread; imports no torch, JAX, EasyDeL or transformers. The GGUF reader
is imported only for a GGUF source, because its package takes a second to import.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from vinfer.checkpoint.family import ModelFacts
from vinfer.checkpoint.generation import GenerationFacts
from vinfer.checkpoint.hf.directory import open_hf_directory
from vinfer.checkpoint.layout import Shape
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.source import ResolvedSource
from vinfer.checkpoint.vision import VisionFacts
from vinfer.errors import CheckpointError
from vinfer.image_processing import ImageProcessing


class Checkpoint(Protocol):
    """The weights and facts of one model, in Hugging Face names and layout."""

    @property
    def model_type(self) -> str:
        """Key in `families.FAMILIES`."""
        ...

    @property
    def config(self) -> dict[str, object]:
        """Keyword arguments for EasyDeL's config class; JSON-serializable; see `NormalisedConfig`."""
        ...

    @property
    def hugging_face_config(self) -> dict[str, object]:
        """config.json as transformers reads it; for a GGUF file, the equivalent config.json."""
        ...

    @property
    def ropes(self) -> dict[str, RopeFacts]: ...

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def vision(self) -> VisionFacts | None:
        """None for a model without images."""
        ...

    @property
    def image_processing(self) -> ImageProcessing | None:
        """How images are prepared; None for a model without images."""
        ...

    @property
    def generation(self) -> GenerationFacts: ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how the checkpoint is read, a line each."""
        ...

    def tensor_names(self) -> list[str]:
        """List exactly the tensors that the model needs; no `lm_head.weight` if the head is tied.

        Reading them in this order goes through each safetensors file once.
        """
        ...

    def tensor_shape(self, name: str) -> Shape: ...

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read one tensor; Linear weights have shape [out, in].

        The dtype is the stored one (float32, float16 or bfloat16); float32 for GGUF and 8-bit floats.
        The array is not cached.
        """
        ...

    def write_tokenizer(self, directory: Path) -> None:
        """Write tokenizer.json, special_tokens.json and, for a chat model, its chat templates."""
        ...


def open_checkpoint(source: ResolvedSource) -> Checkpoint:
    """Open a resolved source; reads headers and configuration, but no weights.

    Raises:
        CheckpointError: unsafe, incomplete, malformed, of an unsupported kind, or a bundle.
    """
    if source.kind == "hf":
        return open_hf_directory(source.path)
    if source.kind == "gguf":
        from vinfer.checkpoint.gguf.checkpoint import open_gguf_checkpoint

        return open_gguf_checkpoint(source.path)
    raise CheckpointError(
        f"{source.spec} is a bundle, which is already built: serve it directly (`vinfer serve {source.spec}`)"
    )


def num_parameters(checkpoint: Checkpoint) -> int:
    """Count the parameters without reading weights; a tied embedding counts once."""
    return sum(math.prod(checkpoint.tensor_shape(name)) for name in checkpoint.tensor_names())
