"""Which EasyDeL 0.3.0 classes build each family, and where they differ from the usual.

The usual is Llama's layout: `model.layers[i].self_attn`, Linear weights transposed, one rotary table.
A family that EasyDeL computes wrongly names its correction here, next to the fact that makes it necessary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vinfer.build.easydel_glm import correct_glm4
from vinfer.build.easydel_gpt import correct_gpt2, correct_gpt_neox
from vinfer.build.easydel_stablelm import correct_stablelm
from vinfer.build.weights import Part
from vinfer.checkpoint.family import ONE_ROPE

Parts = tuple[Part, ...]


def usual_parts(name: str, shape: tuple[int, ...]) -> Parts:
    """Name the checkpoint's tensor for one of EasyDeL's weights.

    Args:
        name: EasyDeL's path; `kernel` of a Linear or a norm, `embedding`, `scale` of a LayerNorm, `bias`.
    """
    stem, _, kind = name.rpartition(".")
    source = f"{stem}.weight" if kind in ("kernel", "embedding", "scale") else name
    return (Part(source, is_transposed=kind == "kernel" and len(shape) == 2),)


def gpt2_parts(name: str, shape: tuple[int, ...]) -> Parts:
    """As `usual_parts`, but for the layers: transformers' Conv1D is stored [in, out]."""
    (part,) = usual_parts(name, shape)
    return (dataclasses.replace(part, is_transposed=part.is_transposed and not name.startswith("transformer.")),)


def nothing(module: Any) -> None:
    """Correct nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EasyDeLFamily:
    """How one family is built.

    Attributes:
        module: under `easydel.modules`.
        decoder: attribute of the causal LM that holds the decoder.
        layers: attribute of the decoder that lists its layers.
        attention: attribute of a layer that holds its attention.
        embedding: tensor of the checkpoint that a tied head reads.
        head: EasyDeL's path of the LM head, without `.kernel`.
        ropes: name of a rotary table -> attribute of the decoder that caches it.
        parts: (EasyDeL's path, shape) -> where its values come from.
        correct: changes the module after it was built; every change with its upstream fact.
    """

    module: str
    config_class: str
    model_class: str
    decoder: str = "model"
    layers: str = "layers"
    attention: str = "self_attn"
    embedding: str = "model.embed_tokens.weight"
    head: str = "lm_head"
    ropes: Mapping[str, str] = dataclasses.field(default_factory=lambda: {ONE_ROPE: "frequencies"})
    parts: Callable[[str, tuple[int, ...]], Parts] = usual_parts
    correct: Callable[[Any], None] = nothing


EASYDEL_FAMILIES: dict[str, EasyDeLFamily] = {
    "glm4": EasyDeLFamily(
        module="glm4", config_class="Glm4Config", model_class="Glm4ForCausalLM", correct=correct_glm4
    ),
    "gpt2": EasyDeLFamily(
        module="gpt2",
        config_class="GPT2Config",
        model_class="GPT2LMHeadModel",
        decoder="transformer",
        layers="h",
        attention="attn",
        embedding="transformer.wte.weight",
        ropes={},
        parts=gpt2_parts,
        correct=correct_gpt2,
    ),
    "gpt_neox": EasyDeLFamily(
        module="gpt_neox",
        config_class="GPTNeoXConfig",
        model_class="GPTNeoXForCausalLM",
        decoder="gpt_neox",
        attention="attention",
        embedding="gpt_neox.embed_in.weight",
        head="embed_out",
        correct=correct_gpt_neox,
    ),
    "llama": EasyDeLFamily(module="llama", config_class="LlamaConfig", model_class="LlamaForCausalLM"),
    "qwen2": EasyDeLFamily(module="qwen2", config_class="Qwen2Config", model_class="Qwen2ForCausalLM"),
    "qwen3": EasyDeLFamily(module="qwen3", config_class="Qwen3Config", model_class="Qwen3ForCausalLM"),
    "stablelm": EasyDeLFamily(
        module="stablelm",
        config_class="StableLmConfig",
        model_class="StableLmForCausalLM",
        correct=correct_stablelm,
    ),
}
