"""What a model family is to this package: which config.json it has, and what that says in our terms.

Runs in the build half, on any thread. Knows no particular family; those are in `families/`, and
`normalise` applies the rules that hold for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.layout import EMBEDDING, HEAD, Shape
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.vision import VisionFacts

ONE_ROPE = "default"
"""Name of the rotary table in a model that has one for all its layers."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of a decoder, for memory plans, KV caches and attention masks.

    Attributes:
        key_dim, value_dim: of one head in the KV cache; they differ in latent attention only.
        num_positions: the longest sequence that the checkpoint knows.
        is_tied: the LM head is the embedding.
        windows: per layer, how many positions a token sees, its own among them; None where all.
        rope_sections: how many pairs of a head rotate by a token's place in time, by its row and by its
            column; empty where all rotate by one position.
        is_mixture: has a router, which turns a rounding error into another expert now and then.
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TensorNames:
    """What a family calls some tensors, and what its files may do otherwise.

    Attributes:
        optional_prefix: of the decoder's tensors; files that were saved from the bare decoder lack it.
        renamed: (beginning of a name in a file, ours), for a family with several layouts.
        buffers: endings of names that are no weights: masks and rotary frequencies of old versions.
    """

    embedding: str = EMBEDDING
    head: str = HEAD
    optional_prefix: str = ""
    renamed: tuple[tuple[str, str], ...] = ()
    buffers: tuple[str, ...] = (".rotary_emb.inv_freq",)

    def our_name(self, stored: str) -> str:
        """Return a tensor's name with the first of `renamed` that it begins with replaced."""
        for beginning, ours in self.renamed:
            if stored.startswith(beginning):
                return ours + stored.removeprefix(beginning)
        return stored


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NormalisedConfig:
    """A config.json of one served family, translated.

    Attributes:
        model_type: key of `families.FAMILIES`.
        config: keyword arguments for EasyDeL's config class; JSON-able, every fact explicit, except the
            rotary ones and the windows: those are applied by vinfer.
        ropes: rotary tables by name; one named `ONE_ROPE`, or one per layer type, or none.
        shapes: every tensor that the checkpoint must hold, in Hugging Face names; no tied head.
        vision: what a model with images has besides its decoder, which the rest describes; else None.
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
        keys: what `translate` reads, beyond `known_keys.COMMON_KEYS`.
        translate: reads the keys; raises CheckpointError for a value that is wrong or not served.
        harmless: keys of this family that cannot change the logits of an inference pass.
    """

    model_type: str
    architecture: str
    keys: frozenset[str]
    translate: Callable[[ConfigKeys], NormalisedConfig]
    harmless: frozenset[str] = frozenset()
