"""GLM-4: one fact, one rule, one test."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.errors import CheckpointError

GLM4: dict[str, Any] = {
    "model_type": "glm4",
    "architectures": ["Glm4ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 128,
    "vocab_size": 304,
}


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({}, "num_key_value_heads", 2),
        ({"num_key_value_heads": 4}, "num_key_value_heads", 4),
        ({}, "head_dim", 128),
        ({"head_dim": 16}, "head_dim", 16),
        ({}, "attention_bias", True),
        ({"attention_bias": False}, "attention_bias", False),
        ({}, "rms_norm_eps", 1.5625e-7),
    ],
)
def test_each_fact_has_its_rule(changes: dict[str, Any], key: str, value: object) -> None:
    assert normalise(GLM4 | changes).config[key] == value


@pytest.mark.parametrize(
    ("changes", "rotary_dim"),
    [
        ({}, 64),
        ({"partial_rotary_factor": 0.25}, 32),
        ({"partial_rotary_factor": None}, 128),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}, 128),
    ],
)
def test_half_of_a_head_is_rotated_unless_told_otherwise(changes: dict[str, Any], rotary_dim: int) -> None:
    assert normalise(GLM4 | changes).ropes == {"default": RopeFacts(theta=1e4, rotary_dim=rotary_dim)}


def test_the_output_projection_never_has_a_bias() -> None:
    shapes = normalise(GLM4).shapes
    assert "model.layers.0.self_attn.v_proj.bias" in shapes
    assert "model.layers.0.self_attn.o_proj.bias" not in shapes


def test_another_activation_is_refused() -> None:
    with pytest.raises(CheckpointError, match="hidden_act = 'gelu'"):
        normalise(GLM4 | {"hidden_act": "gelu"})
