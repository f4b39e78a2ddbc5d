"""Records for one model family: which config.json it has, and what that file means in our terms.

Runs in the build half, on any thread. Knows no particular family; those are in `families/`, and
`normalise` applies the rules that hold for all of them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.layout import EMBEDDING, HEAD, Shape
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.vision import VisionFacts

ONE_ROPE = "default"
"""Name of the rotary table in a model that has one table for all its layers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of a decoder, for memory plans, KV caches and attention masks.

    Attributes:
        key_dim, value_dim: per head in the KV cache; they differ only in latent attention.
        num_positions: the longest sequence that the checkpoint supports.
        is_tied: whether the LM head is the embedding.
        windows: positions that a token sees in each layer, including its own; None means all.
        rope_sections: how many pairs of a head rotate by a token's time, row and column;
            empty if all rotate by one position.
        is_mixture: has a router, where a rounding error can occasionally select another expert.
        has_head: false for a bare decoder, which only embeds.
    """

    num_layers: int
    num_attention_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    hidden_size: int
    vocab_size: int
    num_positions: int
    is_tied: bool
    windows: tuple[int | None, ...]
    rope_sections: tuple[int, ...] = ()
    is_mixture: bool = False
    has_head: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """How a family's files name their tensors.

    Attributes:
        optional_prefix: prefix of the decoder's tensors; files saved from the bare decoder lack it.
        renamed: (prefix in a file, our prefix), for a family with several layouts.
        buffers: suffixes of names that are not weights: masks and rotary frequencies of old versions.
    """

    embedding: str = EMBEDDING
    head: str = HEAD
    optional_prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)

    def our_name(self, stored: str) -> str:
        """Return a tensor's name with the first matching prefix of `renamed` replaced."""
        for beginning, ours in self.renamed:
            if stored.startswith(beginning):
                return ours + stored.removeprefix(beginning)
        return stored


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NormalisedConfig:
    """A config.json of one supported family, translated.

    Attributes:
        model_type: key of `families.FAMILIES`.
        config: keyword arguments for EasyDeL's config class; JSON-serializable, every fact explicit.
            Excludes rotary facts and windows, which vinfer applies itself.
        ropes: rotary tables by name; one named `ONE_ROPE`, one per layer type, or none.
        shapes: every tensor that the checkpoint must hold, in Hugging Face names; a tied head is not listed.
        vision: what a model with images has besides its decoder; None for a text model.
    """

    model_type: str
    config: dict[str, object]
    ropes: dict[str, RopeFacts]
    facts: ModelFacts
    shapes: Mapping[str, Shape]
    names: TensorNames = TensorNames()
    vision: VisionFacts | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model type of transformers.

    Attributes:
        architecture: the class in config.json's `architectures`.
        translate: reads the keys; raises CheckpointError for a wrong or unsupported value.
        harmless: keys of this family that cannot change the logits of an inference pass.
    """

    model_type: str
    architecture: str
    translate: Callable[[ConfigKeys], NormalisedConfig]
    harmless: frozenset[str] = frozenset()

    @property
    def headless(self) -> str | None:
        """The class of the bare decoder, such as `LlamaModel`; None for a family with images."""
        base = re.sub(r"ForCausalLM$|LMHeadModel$", "", self.architecture)
        return None if base == self.architecture else f"{base}Model"
