"""StableLM: one fact, one rule, one test."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.errors import CheckpointError

STABLELM: dict[str, Any] = {
    "model_type": "stablelm",
    "architectures": ["StableLmForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "vocab_size": 304,
}


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({}, "attention_bias", False),
        ({"use_qkv_bias": True}, "attention_bias", True),
        ({}, "qk_layernorm", False),
        ({"qk_layernorm": True}, "qk_layernorm", True),
        ({}, "use_parallel_residual", False),
        ({"use_parallel_residual": True}, "use_parallel_residual", True),
        ({}, "layer_norm_eps", 1e-5),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps", 1e-6),
        # EasyDeL's module applies dropout in inference too.
        ({"hidden_dropout": 0.1}, "hidden_dropout", 0.0),
    ],
)
def test_each_fact_has_its_rule(changes: dict[str, Any], key: str, value: object) -> None:
    assert normalise(STABLELM | changes).config[key] == value


@pytest.mark.parametrize(
    ("changes", "rotary_dim"),
    [
        ({}, 4),
        ({"partial_rotary_factor": 0.5}, 8),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}, 16),
    ],
)
def test_a_quarter_of_a_head_is_rotated_unless_told_otherwise(
    changes: dict[str, Any], rotary_dim: int
) -> None:
    assert normalise(STABLELM | changes).ropes == {"default": RopeFacts(theta=1e4, rotary_dim=rotary_dim)}


def test_a_parallel_block_has_one_norm() -> None:
    name = "model.layers.1.post_attention_layernorm.bias"
    assert name in normalise(STABLELM).shapes
    assert name not in normalise(STABLELM | {"use_parallel_residual": True}).shapes


def test_every_head_has_a_norm_of_its_own() -> None:
    shapes = normalise(STABLELM | {"qk_layernorm": True}).shapes
    assert shapes["model.layers.0.self_attn.q_layernorm.norms.3.weight"] == (16,)
    assert "model.layers.0.self_attn.k_layernorm.norms.1.weight" in shapes
    assert "model.layers.0.self_attn.k_layernorm.norms.2.weight" not in shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 32}, "head_dim = 32"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_what_transformers_would_read_otherwise_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise(STABLELM | changes)


def test_the_number_of_key_heads_must_be_stated() -> None:
    """Without it, transformers assumes 32."""
    config = {key: value for key, value in STABLELM.items() if key != "num_key_value_heads"}
    with pytest.raises(CheckpointError, match="num_key_value_heads"):
        normalise(config)
