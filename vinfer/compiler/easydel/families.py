"""The EasyDeL 0.3.0 classes for each family, and how they differ from the usual layout.

The usual layout is Llama's: `model.layers[i].self_attn`, Linear weights transposed, one rotary table.
A family that EasyDeL computes incorrectly names its correction here, next to the reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from vinfer.checkpoint.families import FAMILIES
from vinfer.checkpoint.family import ONE_ROPE
from vinfer.compiler.easydel.corrections import (
    OLMO3_ROPES,
    cap_attention_logits,
    correct_cohere2,
    correct_glm4,
    correct_gpt2,
    correct_gpt_neox,
    correct_stablelm,
    give_each_norm_its_size,
    rotate_by_layer_type,
    scaled_embeddings,
)
from vinfer.compiler.easydel.mixtures import compute_mixtures_exactly
from vinfer.compiler.weights import Part

Parts = tuple[Part, ...]


def usual_parts(name: str, shape: tuple[int, ...]) -> Parts:
    """Return the checkpoint tensor for one of EasyDeL's weights.

    Args:
        name: EasyDeL's path: `kernel` of a Linear or a norm, `embedding`, `scale` of a LayerNorm, `bias`.
    """
    stem, _, kind = name.rpartition(".")
    source = f"{stem}.weight" if kind in ("kernel", "embedding", "scale") else name
    return (Part(source, is_transposed=kind == "kernel" and len(shape) == 2),)


def mixture_parts(experts: str) -> Callable[[str, tuple[int, ...]], Parts]:
    """Return the naming function of a family whose checkpoint has one tensor per expert.

    Args:
        experts: the attribute that holds EasyDeL's stacks and the checkpoint's numbered experts.
    """

    def parts(name: str, shape: tuple[int, ...]) -> Parts:
        layer, found, projection = name.partition(f".{experts}.")
        if not found:
            return usual_parts(name, shape)
        linear = projection.removesuffix(".kernel")
        return tuple(
            Part(f"{layer}.{experts}.{expert}.{linear}.weight", is_transposed=True)
            for expert in range(shape[0])
        )

    return parts


def gpt_oss_parts(name: str, shape: tuple[int, ...]) -> Parts:
    """Return gpt-oss's parts: stacks [expert, in, out] as in EasyDeL, gate and up columns interleaved."""
    layer, found, projection = name.partition(".mlp.experts.")
    if not found:
        return usual_parts(name, shape)
    linear, kind = projection.split(".")
    ending = "_bias" if kind == "bias" else ""
    if linear == "down_proj":
        return (Part(f"{layer}.mlp.experts.down_proj{ending}"),)
    first = {"gate_proj": 0, "up_proj": 1}[linear]
    return (Part(f"{layer}.mlp.experts.gate_up_proj{ending}", index=(..., slice(first, None, 2))),)


def gpt2_parts(name: str, shape: tuple[int, ...]) -> Parts:
    """Like `usual_parts`, except for the layers: transformers' Conv1D is stored as [in, out]."""
    (part,) = usual_parts(name, shape)
    return (
        dataclasses.replace(part, is_transposed=part.is_transposed and not name.startswith("transformer.")),
    )


def usual_embeddings(decoder: Any, tokens: Any) -> Any:
    """Look up the embeddings of tokens."""
    return decoder.embed_tokens(tokens)


def nothing(module: Any) -> None:
    """Leave the module unchanged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasyDeLFamily:
    """How one family is built.

    Attributes:
        module: submodule of `easydel.modules`; empty for one that is named after the family.
        config_class: its config class; empty if it is named after the model.
        decoder: attribute of the causal LM that holds the decoder.
        layers: attribute of the decoder that lists its layers.
        attention: attribute of a layer that holds its attention.
        head: EasyDeL's path of the LM head, without `.kernel`.
        ropes: name of a rotary table -> attribute of the decoder that caches it.
        parts: (EasyDeL's path, shape) -> where its values come from.
        embed: (decoder, tokens) -> the first layer's input, before image features are inserted.
        correct: corrects the module after it is built; each correction cites its upstream cause.
    """

    module: str = ""
    config_class: str = ""
    decoder: str = "model"
    layers: str = "layers"
    attention: str = "self_attn"
    head: str = "lm_head"
    ropes: Mapping[str, str] = dataclasses.field(default_factory=lambda: {ONE_ROPE: "frequencies"})
    parts: Callable[[str, tuple[int, ...]], Parts] = usual_parts
    embed: Callable[[Any, Any], Any] = usual_embeddings
    correct: Callable[[Any], None] = nothing


_UNUSUAL: dict[str, EasyDeLFamily] = {
    "cohere2": EasyDeLFamily(correct=correct_cohere2),
    "gemma2": EasyDeLFamily(correct=cap_attention_logits),
    "gemma3_text": EasyDeLFamily(
        module="gemma3",
        config_class="Gemma3TextConfig",
        ropes={"full_attention": "frequencies", "sliding_attention": "default_frequencies"},
        embed=scaled_embeddings,
    ),
    "gpt_oss": EasyDeLFamily(
        parts=gpt_oss_parts,
        correct=compute_mixtures_exactly,
    ),
    "glm4": EasyDeLFamily(correct=correct_glm4),
    "gpt2": EasyDeLFamily(
        decoder="transformer",
        layers="h",
        attention="attn",
        ropes={},
        parts=gpt2_parts,
        correct=correct_gpt2,
    ),
    "gpt_neox": EasyDeLFamily(
        decoder="gpt_neox",
        attention="attention",
        head="embed_out",
        correct=correct_gpt_neox,
    ),
    "mixtral": EasyDeLFamily(
        parts=mixture_parts("block_sparse_moe.experts"),
        correct=compute_mixtures_exactly,
    ),
    "olmo2": EasyDeLFamily(correct=give_each_norm_its_size),
    "olmo3": EasyDeLFamily(
        ropes={name: f"{name}_frequencies" for name in OLMO3_ROPES},
        correct=rotate_by_layer_type,
    ),
    "qwen3_moe": EasyDeLFamily(
        parts=mixture_parts("mlp.experts"),
        correct=compute_mixtures_exactly,
    ),
    "stablelm": EasyDeLFamily(correct=correct_stablelm),
}


def easydel_family(model_type: str) -> EasyDeLFamily:
    """Return how a family of `checkpoint.families` is built; most have the usual layout."""
    return _UNUSUAL.get(model_type, EasyDeLFamily())


def easydel_classes(model_type: str) -> tuple[type[Any], type[Any]]:
    """Return EasyDeL's config and causal LM of a family. They have the names that transformers has."""
    family, model_class = easydel_family(model_type), FAMILIES[model_type].architecture
    package = importlib.import_module(f"easydel.modules.{family.module or model_type}")
    config_class = family.config_class or re.sub(r"(ForCausalLM|LMHeadModel)$", "Config", model_class)
    return getattr(package, config_class), getattr(package, model_class)
