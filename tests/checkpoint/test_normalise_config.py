"""Configurations of transformers 4 and 5 in EasyDeL's terms: one fact, one rule, one test."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from vinfer.checkpoint.families import FAMILIES
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.unsupported import UNSUPPORTED_MODEL_TYPES
from vinfer.errors import CheckpointError

LLAMA3 = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
Tiny = Callable[..., Any]


def _config(tiny: Tiny, model_type: str, /, **changes: Any) -> dict[str, Any]:
    """Return the normalized tiny config with changes; `...` removes a key."""
    config = tiny(model_type).config | changes
    return {key: value for key, value in config.items() if value is not ...}


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_every_fact_is_explicit_and_json(tiny: Tiny, model_type: str) -> None:
    normalised = normalise(_config(tiny, model_type))
    assert normalised.model_type == model_type
    assert json.loads(json.dumps(normalised.config)) == normalised.config
    assert normalised.config["layer_types"] == ["full_attention", "full_attention"]
    assert normalised.facts.windows == (None, None)
    assert normalised.ropes == {"default": RopeFacts(theta=10000.0, rotary_dim=8)}


@pytest.mark.parametrize(
    ("version_4", "version_5"),
    [
        ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_type": "default"}),
        ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_theta": 5e5, "rope_type": "default"}),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, LLAMA3 | {"rope_theta": 5e5}),
        (
            {"rope_theta": 100, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        ),
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
    ],
)
def test_both_spellings_of_rope_mean_the_same(
    tiny: Tiny, version_4: dict[str, Any], version_5: dict[str, Any]
) -> None:
    old = normalise(_config(tiny, "llama", rope_parameters=..., **version_4))
    assert old == normalise(_config(tiny, "llama", rope_parameters=version_5))


def test_llama3_original_length_defaults_to_the_maximum(tiny: Tiny) -> None:
    scaling = {key: value for key, value in LLAMA3.items() if not key.startswith("original")}
    rope = normalise(_config(tiny, "llama", rope_scaling=scaling)).ropes["default"]
    assert rope.original_max_position_embeddings == 128


@pytest.mark.parametrize(
    ("model_type", "changes", "key", "value"),
    [
        ("llama", {"head_dim": ...}, "head_dim", 8),
        ("llama", {"head_dim": None}, "head_dim", 8),
        ("llama", {"head_dim": 16}, "head_dim", 16),
        ("qwen2", {"head_dim": ...}, "head_dim", 8),
        ("qwen3", {"head_dim": ...}, "head_dim", 128),
        ("llama", {"num_key_value_heads": ...}, "num_key_value_heads", 4),
        ("qwen2", {"num_key_value_heads": None}, "num_key_value_heads", 4),
        ("llama", {}, "attention_bias", False),
        ("llama", {"attention_bias": True}, "attention_bias", True),
        ("llama", {"mlp_bias": True}, "mlp_bias", True),
        ("qwen2", {}, "attention_bias", True),
        ("qwen3", {}, "attention_bias", False),
        ("llama", {"rms_norm_eps": ...}, "rms_norm_eps", 1e-6),
        ("llama", {"hidden_act": "swish"}, "hidden_act", "silu"),
        ("qwen2", {"sliding_window": 4096, "use_sliding_window": False}, "sliding_window", None),
        ("qwen3", {"sliding_window": 4096}, "use_sliding_window", False),
        ("qwen2", {"layer_types": ["full_attention"] * 2}, "use_sliding_window", False),
    ],
)
def test_each_fact_has_its_rule(
    tiny: Tiny, model_type: str, changes: dict[str, Any], key: str, value: object
) -> None:
    assert normalise(_config(tiny, model_type, **changes)).config[key] == value


@pytest.mark.parametrize("harmless", [{"dtype": "bfloat16"}, {"torch_dtype": "float16"}, {"new_key": None}])
def test_what_cannot_change_logits_is_left_out(tiny: Tiny, harmless: dict[str, Any]) -> None:
    assert normalise(_config(tiny, "llama", **harmless)) == normalise(_config(tiny, "llama"))


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("llama", {"model_type": "bert"}, "model_type = 'bert': supported: .*llama, qwen2, qwen3"),
        ("llama", {"model_type": ...}, "no model_type"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "windows are off: correct one of them",
        ),
        ("qwen2", {"layer_types": ["full_attention"]}, "1 entries for num_hidden_layers = 2"),
        ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ("llama", {"layer_types": ["full_attention", "full_attention"]}, "layer_types"),
        ("llama", {"sliding_window": 128}, "sliding_window"),
        ("llama", {"residual_multiplier": 0.2}, "residual_multiplier = 0.2: vinfer does not know"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved = True: only False"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("llama", {"head_dim": 7}, "even"),
        ("qwen2", {"head_dim": 16}, "head_dim"),
        ("qwen3", {"num_key_value_heads": ...}, "num_key_value_heads"),
        ("llama", {"num_key_value_heads": 3}, "must divide"),
        ("llama", {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": ...}, "must divide"),
        ("llama", {"hidden_size": ...}, "no hidden_size"),
        ("llama", {"hidden_size": "32"}, "hidden_size = '32'"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers = True"),
        ("llama", {"num_hidden_layers": 10**9}, "from 1 to 1024"),
        ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps = 1000.*finite"),
        ("llama", {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ("llama", {"rope_parameters": [1]}, "rope_parameters"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "full_attention"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "no factor"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": -1}}, "rope_theta = -1"),
        ("llama", {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    tiny: Tiny, model_type: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(_config(tiny, model_type, **changes))


@pytest.mark.parametrize(
    ("changes", "is_tied"), [({"tie_word_embeddings": ...}, False), ({"tie_word_embeddings": True}, True)]
)
def test_a_tied_head_is_no_tensor(tiny: Tiny, changes: dict[str, Any], is_tied: bool) -> None:
    normalised = normalise(_config(tiny, "llama", **changes))
    assert normalised.facts.is_tied == is_tied
    assert ("lm_head.weight" in normalised.shapes) != is_tied


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 16, "use_sliding_window": False}, (None, None)),
        ({"sliding_window": 16, "use_sliding_window": True}, (None, None)),
        ({"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, (None, 16)),
        ({"use_sliding_window": True, "max_window_layers": 0}, (4096, 4096)),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}, (None, None)),
        (
            {
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (16, None),
        ),
    ],
)
def test_qwen_windows_are_those_of_transformers(
    tiny: Tiny, changes: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert normalise(_config(tiny, "qwen2", **changes)).facts.windows == windows


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("falcon_mamba", "all layers are Mamba, .* no recurrent state"),
        ("jamba", "some layers are Mamba, .* no recurrent state"),
        ("deepseek_v3", "its attention is latent"),
        ("gemma3n", "it takes images or sound"),
        ("llava_next", "it takes images or sound"),
        ("t5", "it has an encoder and a decoder"),
    ],
)
def test_a_model_that_vinfer_cannot_serve_is_refused_for_its_reason(model_type: str, reason: str) -> None:
    with pytest.raises(
        CheckpointError, match=f"model_type = '{model_type}': {reason}.*: choose one of llama"
    ):
        normalise({"model_type": model_type, "state_size": 16})


@pytest.mark.torch
def test_unsupported_types_are_spelled_as_transformers_spells_them() -> None:
    transformers = pytest.importorskip("transformers")
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    assert set(UNSUPPORTED_MODEL_TYPES) <= set(known)
    assert not set(UNSUPPORTED_MODEL_TYPES) & set(FAMILIES)


@pytest.mark.torch
def test_unsupported_types_are_what_transformers_says_of_them() -> None:
    auto = pytest.importorskip("transformers").models.auto.modeling_auto
    images = {kind for kind, why in UNSUPPORTED_MODEL_TYPES.items() if "images" in why}
    encoders = {kind for kind, why in UNSUPPORTED_MODEL_TYPES.items() if "encoder" in why}
    assert images <= set(auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
    assert encoders <= set(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES) | {"whisper"}
