"""Turns a config.json of transformers 4 or 5 into what EasyDeL 0.3 reads; one rule per fact.

Runs in the build half, on any thread. EasyDeL ignores what it does not know and then computes other
logits, so here a key is either translated, known to be harmless, or the build stops and names it.
Knows nothing of files and tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.known_keys import HARMLESS_KEYS, OFF_KEYS, TRANSLATED_KEYS
from vinfer.checkpoint.rope import RopeFacts
from vinfer.checkpoint.rope_config import read_rope

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclasses.dataclass(frozen=True, slots=True)
class NormalisedConfig:
    """A config of one served family.

    Attributes:
        model_type: key of `ARCHITECTURES`.
        config: keyword arguments for EasyDeL's config class; JSON-able, every fact explicit.
        rope: the rotary facts again, to compute the table from.
    """

    model_type: str
    config: dict[str, object]
    rope: RopeFacts


def normalise(raw: Mapping[str, object], where: str = "config.json") -> NormalisedConfig:
    """Translate a transformers config; `where` names its file in errors.

    Raises:
        CheckpointError: a family, feature or key that vinfer does not serve, or a wrong value.
    """
    keys = ConfigKeys(raw, where)
    model_type = _model_type(keys)
    _refuse_unserved(keys, model_type)
    num_layers = keys.integer("num_hidden_layers", maximum=1024)
    heads = _heads(keys, model_type)
    config: dict[str, object] = {
        "vocab_size": keys.integer("vocab_size", maximum=2**24),
        "hidden_size": keys.integer("hidden_size", maximum=2**20),
        "intermediate_size": keys.integer("intermediate_size", maximum=2**22),
        "num_hidden_layers": num_layers,
        **heads,
        "hidden_act": _hidden_act(keys),
        "max_position_embeddings": keys.integer("max_position_embeddings"),
        "rms_norm_eps": keys.number("rms_norm_eps", 1e-6),
        "tie_word_embeddings": keys.boolean("tie_word_embeddings", False),
        # EasyDeL's Qwen configs slide from layer 28 on unless told otherwise.
        "layer_types": ["full_attention"] * num_layers,
    }
    if model_type == "qwen2":
        # Not a key of this family: its q, k and v projections always have a bias, o_proj never.
        config["attention_bias"] = True
    else:
        config["attention_bias"] = keys.boolean("attention_bias", False)
    if model_type == "llama":
        config["mlp_bias"] = keys.boolean("mlp_bias", False)
    else:
        config |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": num_layers}
    rope = read_rope(keys, head_dim=heads["head_dim"])
    config["rope_theta"] = rope.theta
    return NormalisedConfig(model_type, config, rope)


def _model_type(keys: ConfigKeys) -> str:
    model_type = keys.string("model_type")
    if model_type not in ARCHITECTURES:
        raise keys.refusal("model_type", f"vinfer serves {', '.join(ARCHITECTURES)}")
    architectures = keys.values.get("architectures")
    expected = ARCHITECTURES[model_type]
    if architectures is not None and architectures != [expected]:
        raise keys.refusal("architectures", f"for model_type {model_type} vinfer serves {expected}")
    return model_type


def _refuse_unserved(keys: ConfigKeys, model_type: str) -> None:
    if keys.has("quantization_config"):
        raise keys.refusal(
            "quantization_config",
            "quantised safetensors are not served: take the original weights or a GGUF file",
        )
    if keys.has("use_sliding_window") and keys.boolean("use_sliding_window"):
        raise keys.refusal("use_sliding_window", "sliding-window attention is not served yet")
    layer_types = keys.values.get("layer_types")
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise keys.refusal(
            "layer_types", "only full_attention layers are served; sliding windows are not yet"
        )
    for key, value in keys.values.items():
        if key in OFF_KEYS:
            if value is not None and value != OFF_KEYS[key]:
                raise keys.refusal(key, f"only {OFF_KEYS[key]!r} is served")
        elif key == "sliding_window" and model_type != "llama":
            continue  # `use_sliding_window` is false here, and without it these families ignore the width
        elif value is not None and key not in TRANSLATED_KEYS and key not in HARMLESS_KEYS:
            raise keys.refusal(
                key,
                "vinfer does not know this key and cannot tell whether it changes the logits: remove it "
                "from the file if it does not",
            )


def _heads(keys: ConfigKeys, model_type: str) -> dict[str, int]:
    hidden_size = keys.integer("hidden_size", maximum=2**20)
    num_heads = keys.integer("num_attention_heads", maximum=2**16)
    if model_type != "llama" and "num_key_value_heads" not in keys.values:
        raise keys.refusal("num_key_value_heads", f"{model_type} configs must state it")
    num_kv_heads = keys.integer("num_key_value_heads", num_heads, maximum=2**16)
    if num_heads % num_kv_heads:
        raise keys.refusal("num_key_value_heads", f"must divide num_attention_heads = {num_heads}")
    if model_type != "qwen3" and not keys.has("head_dim") and hidden_size % num_heads:
        raise keys.refusal("num_attention_heads", f"must divide hidden_size = {hidden_size}")
    default = 128 if model_type == "qwen3" else max(hidden_size // num_heads, 1)
    head_dim = keys.integer("head_dim", default, maximum=2**14)
    if head_dim % 2:
        raise keys.refusal("head_dim", f"is {head_dim}, but rotary embedding needs an even one")
    if model_type == "qwen2" and head_dim * num_heads != hidden_size:
        raise keys.refusal(
            "head_dim", f"EasyDeL's qwen2 always takes hidden_size / num_attention_heads = {default}"
        )
    return {"num_attention_heads": num_heads, "num_key_value_heads": num_kv_heads, "head_dim": head_dim}


def _hidden_act(keys: ConfigKeys) -> str:
    if keys.string("hidden_act", "silu") not in ("silu", "swish"):
        raise keys.refusal("hidden_act", "only silu (also called swish) is served for these families")
    return "silu"
