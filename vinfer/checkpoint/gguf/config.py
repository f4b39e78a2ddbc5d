"""Translates GGUF metadata into the config.json that transformers 5 would have for the same model.

Runs in the build half, on any thread. Pure functions: the result goes through `normalise` like any other
config.json. Knows how llama.cpp reads its keys and which defaults it uses for absent ones.

Source: llama.cpp, `load_hparams` of each architecture and `rope.scaling` in llama-model.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.gguf.names import TENSOR_RULES
from vinfer.checkpoint.layout import Shape

MAX_LAYERS = 1024

_HARMLESS_KEYS = frozenset(
    {
        "rope.scaling.finetuned",
        "rope.scaling.original_context_length",
        "tensor_data_layout",
        "vocab_size",
    }
)
"""Keys below `<architecture>.` without effect on the logits."""


def hugging_face_config(keys: ConfigKeys, shapes: Mapping[str, Shape]) -> dict[str, object]:
    """Translate the metadata of a whole file.

    Args:
        shapes: shapes of all its tensors, under llama.cpp's names.

    Returns:
        A config.json of transformers 5, every fact explicit.

    Raises:
        CheckpointError: an unsupported architecture, a missing or wrong value, or an unknown key.
    """
    architecture = keys.string("general.architecture")
    if architecture not in TENSOR_RULES:
        raise keys.refusal("general.architecture", f"supported: {', '.join(TENSOR_RULES)}")
    if keys.string("general.type", "model") != "model":
        raise keys.refusal("general.type", "only whole models are supported, not adapters or projectors")
    if keys.integer("split.count", 1, minimum=0) > 1:
        raise keys.refusal(
            "split.count", "split files are unsupported: merge them with llama-gguf-split --merge"
        )
    prefix = f"{architecture}."
    model = ConfigKeys(
        {key.removeprefix(prefix): value for key, value in keys.values.items() if key.startswith(prefix)},
        f"{keys.where}: {architecture}",
    )
    config = _TRANSLATE[architecture](model, shapes)
    model.refuse_unread(
        "vinfer does not know this key and cannot tell if it changes the logits: use another file",
        harmless=_HARMLESS_KEYS,
    )
    return {"vocab_size": shapes.get("token_embd.weight", (1,))[0], **config}


def _sizes(model: ConfigKeys, shapes: Mapping[str, Shape]) -> dict[str, object]:
    """Translate the keys that all architectures have."""
    if (
        model.integer("expert_count", 0, minimum=0) > 0
        or model.integer("expert_used_count", 0, minimum=0) > 0
    ):
        key = "expert_count" if model.values.get("expert_count") else "expert_used_count"
        raise model.refusal(key, "mixtures of experts are unsupported in GGUF")
    hidden_size, num_heads = model.integer("embedding_length"), model.integer("attention.head_count")
    head_dim = model.integer("attention.key_length", max(hidden_size // num_heads, 1))
    for key in ("rope.dimension_count", "attention.value_length"):
        if model.integer(key, head_dim) != head_dim:
            raise model.refusal(key, f"must equal the head dimension {head_dim}")
    return {
        "hidden_size": hidden_size,
        "intermediate_size": model.integer("feed_forward_length"),
        "num_hidden_layers": model.integer("block_count", maximum=MAX_LAYERS),
        "num_attention_heads": num_heads,
        "num_key_value_heads": model.integer("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": model.integer("context_length"),
        "rms_norm_eps": model.number("attention.layer_norm_rms_epsilon"),
        # llama.cpp omits a tied head.
        "tie_word_embeddings": "output.weight" not in shapes,
    }


def _llama(model: ConfigKeys, shapes: Mapping[str, Shape]) -> dict[str, object]:
    return {
        "model_type": "llama",
        **_without_windows(model, shapes),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }


def _qwen2(model: ConfigKeys, shapes: Mapping[str, Shape]) -> dict[str, object]:
    return {"model_type": "qwen2", **_without_windows(model, shapes)}


def _qwen3(model: ConfigKeys, shapes: Mapping[str, Shape]) -> dict[str, object]:
    return {
        "model_type": "qwen3",
        **_without_windows(model, shapes),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
    }


def _without_windows(model: ConfigKeys, shapes: Mapping[str, Shape]) -> dict[str, object]:
    if model.integer("attention.sliding_window", 0, minimum=0) > 0:
        raise model.refusal(
            "attention.sliding_window", "sliding windows are unsupported for this architecture in GGUF"
        )
    return {
        **_sizes(model, shapes),
        "rope_parameters": _rope(model, model.number("rope.freq_base", 10_000.0)),
    }


def _gemma2(model: ConfigKeys, shapes: Mapping[str, Shape]) -> dict[str, object]:
    sizes = _gemma_sizes(model, shapes, largest=46)
    theta = model.number("rope.freq_base", 10_000.0)
    if model.number("rope.freq_base_swa", theta) != theta:
        raise model.refusal("rope.freq_base_swa", f"transformers' Gemma 2 has one: rope.freq_base = {theta}")
    return {
        "model_type": "gemma2",
        **sizes,
        "sliding_window": model.integer("attention.sliding_window", 4096),
        "layer_types": _layer_types(model, period=2),
        "attn_logit_softcapping": model.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": model.number("final_logit_softcapping", 30.0),
        "rope_parameters": _rope(model, theta),
    }


def _gemma3(model: ConfigKeys, shapes: Mapping[str, Shape]) -> dict[str, object]:
    sizes = _gemma_sizes(model, shapes, largest=62)
    window = model.integer("attention.sliding_window", 0, minimum=0)
    layer_types = _layer_types(model, period=6)
    if not window:
        layer_types = ["full_attention"] * len(layer_types)
    cap = "final_logit_softcapping"
    return {
        "model_type": "gemma3_text",
        **sizes,
        "sliding_window": window or None,
        "layer_types": layer_types,
        "final_logit_softcapping": model.number(cap) if model.has(cap) else None,
        "rope_parameters": {
            # Scaling applies to full-attention layers only.
            "full_attention": _rope(model, model.number("rope.freq_base", 10_000.0)),
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": model.number("rope.freq_base_swa", 10_000.0),
            },
        },
    }


def _gemma_sizes(model: ConfigKeys, shapes: Mapping[str, Shape], *, largest: int) -> dict[str, object]:
    """Translate the sizes; `largest` is the number of layers of the generation's 27B model.

    Files do not state the divisor of attention scores; llama.cpp infers it from the number of layers.
    """
    sizes = _sizes(model, shapes)
    hidden_size, num_heads = model.integer("embedding_length"), model.integer("attention.head_count")
    is_largest = sizes["num_hidden_layers"] == largest
    return {
        **sizes,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": max(hidden_size // num_heads, 1) if is_largest else sizes["head_dim"],
    }


def _layer_types(model: ConfigKeys, *, period: int) -> list[str]:
    """Return the layer types: every `period`-th layer is full attention, or one boolean per layer decides."""
    key = "attention.sliding_window_pattern"
    num_layers = model.integer("block_count", maximum=MAX_LAYERS)
    stated = model.values.get(key)
    if isinstance(stated, np.ndarray):
        if len(stated) != num_layers or stated.dtype != np.bool_:
            raise model.refusal(key, f"must be a number or hold one boolean for each of {num_layers} layers")
        slides = [bool(layer) for layer in stated]
    else:
        period = model.integer(key, period, minimum=0)
        slides = [period == 0 or layer % period < period - 1 for layer in range(num_layers)]
    return ["sliding_attention" if layer else "full_attention" for layer in slides]


def _rope(model: ConfigKeys, theta: float) -> dict[str, object]:
    """Return `rope_parameters`. A factor without a type means linear scaling; a factor of 0 means none."""
    scaling = model.string("rope.scaling.type", "linear")
    if scaling not in ("none", "linear"):
        raise model.refusal("rope.scaling.type", "supported scaling types: none, linear")
    stated = model.values.get("rope.scaling.factor")
    is_zero = isinstance(stated, int | float) and stated == 0
    factor = 1.0 if is_zero else model.number("rope.scaling.factor", 1.0)
    if scaling == "none" or factor == 1.0:
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": "linear", "rope_theta": theta, "factor": factor}


_TRANSLATE: dict[str, Callable[[ConfigKeys, Mapping[str, Shape]], dict[str, object]]] = {
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}
