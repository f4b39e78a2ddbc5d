"""GGUF metadata to config.json: one key, one fact, one test; defaults are those of llama.cpp."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gemma_gguf import gemma_gguf

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.gguf.config import hugging_face_config
from vinfer.checkpoint.gguf.file import open_gguf
from vinfer.checkpoint.normalise import normalise
from vinfer.errors import CheckpointError

SIZES = {
    "block_count": 7,
    "context_length": 128,
    "embedding_length": 64,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 8,
    "attention.value_length": 8,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
SHAPES: dict[str, tuple[int, ...]] = {"token_embd.weight": (260, 64)}


def config(architecture: str, *names: str, **changes: Any) -> dict[str, Any]:
    """Translate metadata; `names` are extra tensors, `__` in a key means a dot, `...` removes a key."""
    values = SIZES | {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {f"{architecture}.{key}": value for key, value in values.items() if value is not ...}
    keys = ConfigKeys({"general.architecture": architecture, **metadata}, "x.gguf")
    return hugging_face_config(keys, SHAPES | dict.fromkeys(names, (1,)))


def test_llama() -> None:
    assert config("llama", "output.weight") == {
        "model_type": "llama",
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


def test_biases_and_the_head_show_in_the_tensors() -> None:
    found = config("llama", "blk.0.attn_q.bias", "blk.0.ffn_up.bias")
    assert (found["attention_bias"], found["mlp_bias"], found["tie_word_embeddings"]) == (True, True, True)
    assert config("qwen3", "blk.0.attn_q.bias")["attention_bias"] is True
    assert "attention_bias" not in config("qwen2", "blk.0.attn_q.bias")


def test_heads_default_as_in_llama_cpp() -> None:
    lacking = {"attention__head_count_kv": ..., "attention__key_length": ..., "attention__value_length": ...}
    found = config("llama", **lacking)
    assert (found["num_key_value_heads"], found["head_dim"]) == (4, 16)


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({"rope__freq_base": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, {"rope_type": "default"}),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        # llama.cpp treats scaling without a type as linear, and 0 as none
        ({"rope__scaling__factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope__scaling__factor": 0.0}, {"rope_type": "default"}),
        ({"rope__scaling__type": "linear"}, {"rope_type": "default"}),
    ],
)
def test_rotary_scaling(changes: dict[str, Any], rope: dict[str, Any]) -> None:
    assert config("llama", **changes)["rope_parameters"] == {"rope_theta": 10000.0, **rope}


def test_gemma3() -> None:
    found = config("gemma3", attention__sliding_window=32, rope__freq_base=1e6)
    assert found == {
        "model_type": "gemma3_text",
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": 8,
        "sliding_window": 32,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        "final_logit_softcapping": None,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }


def test_gemma3_scales_the_layers_that_see_everything() -> None:
    """As in the 4B, 12B and 27B models."""
    found = config(
        "gemma3",
        attention__sliding_window=32,
        rope__freq_base=1e6,
        rope__freq_base_swa=2e4,
        rope__scaling__type="linear",
        rope__scaling__factor=8.0,
    )
    assert found["rope_parameters"] == {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }


@pytest.mark.parametrize(
    ("pattern", "slides"),
    [
        (2, [True, False] * 3 + [True]),
        (1, [False] * 7),
        (0, [True] * 7),
        (
            np.array([True, False, False, True, False, True, True]),
            [True, False, False, True, False, True, True],
        ),
    ],
)
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_the_pattern_of_windows_may_be_stated(architecture: str, pattern: Any, slides: list[bool]) -> None:
    found = config(architecture, attention__sliding_window=32, attention__sliding_window_pattern=pattern)
    assert [kind == "sliding_attention" for kind in found["layer_types"]] == slides


def test_gemma3_without_a_window_sees_everything() -> None:
    found = config("gemma3", final_logit_softcapping=30.0)
    assert (found["layer_types"], found["sliding_window"]) == (["full_attention"] * 7, None)
    assert found["final_logit_softcapping"] == 30.0
    assert normalise(found).facts.windows == (None,) * 7


def test_gemma2() -> None:
    found = config("gemma2")
    assert found["model_type"] == "gemma2"
    assert found["layer_types"] == ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]
    assert found["sliding_window"] == 4096
    assert (found["attn_logit_softcapping"], found["final_logit_softcapping"]) == (50.0, 30.0)
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}
    found = config(
        "gemma2", attention__sliding_window=9, attn_logit_softcapping=7.0, final_logit_softcapping=8.0
    )
    assert (found["sliding_window"], found["attn_logit_softcapping"], found["final_logit_softcapping"]) == (
        9,
        7,
        8,
    )


@pytest.mark.parametrize(("architecture", "largest"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemma_divides_scores_by_another_number(architecture: str, largest: int) -> None:
    assert config(architecture, block_count=largest)["query_pre_attn_scalar"] == 64 // 4
    assert config(architecture, block_count=largest - 1)["query_pre_attn_scalar"] == 8


@pytest.mark.torch
@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_transformers_and_normalise_take_every_key(architecture: str) -> None:
    """Check also that transformers reads the result as intended."""
    import transformers

    found = config(architecture, attention__sliding_window=32, final_logit_softcapping=20.0)
    theirs = transformers.AutoConfig.for_model(**found)
    assert {key: getattr(theirs, key) for key in found} == found
    normalised = normalise(found)
    assert normalised.facts.windows == tuple(32 if kind[0] == "s" else None for kind in found["layer_types"])
    assert normalised.config["query_pre_attn_scalar"] == 8


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("llama", {"attention__sliding_window": 64}, "sliding_window = 64"),
        ("llama", {"expert_used_count": 2}, "expert_used_count = 2: mixtures"),
        ("llama", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0: vinfer does not know"),
        ("llama", {"rope__scaling__factor": np.ones(2)}, "rope.scaling.factor = .*: must be a number"),
        ("llama", {"rope__scaling__factor": -1.0}, "rope.scaling.factor = -1.0"),
        ("llama", {"rope__scaling__factor": float("nan")}, "rope.scaling.factor = nan"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0: vinfer does not know"),
        ("gemma3", {"block_count": 10**9}, "block_count = 1000000000: must be an integer from 1 to 1024"),
        ("gemma3", {"attention__causal": False}, "attention.causal = False: vinfer does not know"),
        ("gemma3", {"rope__scaling__type": "yarn"}, "rope.scaling.type = 'yarn'"),
        ("gemma3", {"rope__dimension_count": 4}, "rope.dimension_count = 4: must equal the head dimension 8"),
        ("gemma2", {"rope__freq_base_swa": 1e6}, "rope.freq_base_swa = 1000000.0"),
        ("gemma2", {"attention__sliding_window": 0}, "attention.sliding_window = 0"),
        (
            "gemma2",
            {"attention__sliding_window_pattern": np.ones(3, np.bool_)},
            "boolean for each of 7 layers",
        ),
        ("gemma2", {"attention__sliding_window_pattern": np.ones(7)}, "boolean for each of 7 layers"),
        ("gemma2", {"attention__sliding_window_pattern": "2"}, "sliding_window_pattern = '2'"),
        ("gemma", {}, "general.architecture = 'gemma': supported: gemma2, gemma3, llama"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    architecture: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        config(architecture, **changes)


def test_gemma_3_270m() -> None:
    file = open_gguf(gemma_gguf())
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    found = hugging_face_config(ConfigKeys(file.metadata, "gemma"), shapes)
    assert found["layer_types"] == (["sliding_attention"] * 5 + ["full_attention"]) * 3
    sizes = ("vocab_size", "hidden_size", "head_dim", "query_pre_attn_scalar", "sliding_window")
    assert [found[key] for key in sizes] == [262144, 640, 256, 256, 512]
    thetas = {kind: rope.theta for kind, rope in normalise(found).ropes.items()}
    assert thetas == {"full_attention": 1e6, "sliding_attention": 1e4}
