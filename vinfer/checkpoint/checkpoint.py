"""The seam of this package: one checkpoint, wherever its weights come from.

Runs in the build half, on any thread; imports no torch, JAX, EasyDeL or transformers. The GGUF reader
is imported only for a GGUF source, since its package takes a second to import.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.generation import GenerationFacts
from vinfer.checkpoint.hf_directory import open_hf_directory
from vinfer.checkpoint.layout import Shape
from vinfer.checkpoint.rope import RopeFacts
from vinfer.checkpoint.source import ResolvedSource
from vinfer.errors import CheckpointError


class Checkpoint(Protocol):
    """Weights and facts of one model, in Hugging Face names and layout."""

    @property
    def model_type(self) -> str:
        """llama, qwen2 or qwen3."""
        ...

    @property
    def config(self) -> dict[str, object]:
        """Keyword arguments for EasyDeL's config class; JSON-able, every fact explicit.

        It says nothing of how the rotary table is scaled: take the table from `rope`.
        """
        ...

    @property
    def rope(self) -> RopeFacts: ...

    @property
    def generation(self) -> GenerationFacts: ...

    def tensor_names(self) -> list[str]:
        """List exactly the tensors that the model needs; no `lm_head.weight` where it is tied."""
        ...

    def tensor_shape(self, name: str) -> Shape: ...

    def read(self, name: str) -> npt.NDArray[Any]:
        """Read one tensor; Linear weights are [out, in].

        The dtype is that stored (float32, float16 or bfloat16); float32 from GGUF.
        """
        ...

    def write_tokenizer(self, directory: Path) -> None:
        """Write tokenizer.json, special_tokens.json and, for a chat model, chat_template.jinja."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The sizes a memory plan needs. `num_parameters` counts a tied embedding once."""

    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    vocab_size: int
    num_parameters: int


def open_checkpoint(source: ResolvedSource) -> Checkpoint:
    """Open a resolved source; reads headers and configuration, no weights.

    Raises:
        CheckpointError: unsafe, incomplete, malformed, of a kind not served, or a bundle.
    """
    if source.kind == "hf":
        return open_hf_directory(source.path)
    if source.kind == "gguf":
        from vinfer.checkpoint.gguf_checkpoint import open_gguf_checkpoint

        return open_gguf_checkpoint(source.path)
    raise CheckpointError(
        f"{source.spec} is a bundle, which is already built: serve it as it is (`vinfer serve {source.spec}`)"
    )


def describe(checkpoint: Checkpoint) -> ModelFacts:
    """Sum up a checkpoint without reading weights."""
    config = ConfigKeys(checkpoint.config, "config")
    return ModelFacts(
        num_layers=config.integer("num_hidden_layers"),
        num_attention_heads=config.integer("num_attention_heads"),
        num_kv_heads=config.integer("num_key_value_heads"),
        head_dim=config.integer("head_dim"),
        hidden_size=config.integer("hidden_size"),
        vocab_size=config.integer("vocab_size"),
        num_parameters=sum(math.prod(checkpoint.tensor_shape(name)) for name in checkpoint.tensor_names()),
    )
