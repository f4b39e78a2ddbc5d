"""Phi-3: one fact, one rule, one test; configs of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.checkpoint.normalise import normalise
from vinfer.errors import CheckpointError

PHI3: dict[str, Any] = {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}
FACTORS = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}


@pytest.mark.parametrize(
    ("changes", "windows"),
    [({}, (None, None)), ({"sliding_window": None}, (None, None)), ({"sliding_window": 32}, (32, 32))],
)
def test_all_layers_slide_or_none(changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert normalise({**PHI3, **changes}).facts.windows == windows


@pytest.mark.parametrize(
    "form",
    [
        {"partial_rotary_factor": 0.75, "rope_scaling": {"type": "longrope", **FACTORS}},
        {"partial_rotary_factor": 0.75, "rope_scaling": {"type": "su", **FACTORS}},
        {"partial_rotary_factor": 0.75, "rope_scaling": {"type": "yarn", **FACTORS}},
        {"rope_parameters": {"rope_type": "longrope", "partial_rotary_factor": 0.75, **FACTORS}},
    ],
    ids=["longrope", "su", "yarn", "transformers 5"],
)
def test_every_name_of_longrope(form: dict[str, Any]) -> None:
    rope = normalise({**PHI3, **form}).ropes["default"]
    assert (rope.rope_type, rope.rotary_dim) == ("longrope", 12)
    assert rope.original_max_position_embeddings == 4096


def test_the_original_length_stands_outside() -> None:
    changes = {
        "original_max_position_embeddings": 1024,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", **FACTORS},
    }
    assert normalise({**PHI3, **changes}).ropes["default"].original_max_position_embeddings == 1024


def test_projections_are_fused() -> None:
    shapes = normalise({**PHI3, "head_dim": 24}).shapes
    assert shapes["model.layers.1.self_attn.qkv_proj.weight"] == (96 + 48 + 48, 64)
    assert shapes["model.layers.1.self_attn.o_proj.weight"] == (64, 96)
    assert shapes["model.layers.1.mlp.gate_up_proj.weight"] == (192, 64)


def test_what_published_files_state_besides_is_no_obstacle() -> None:
    published = {
        "attention_bias": False,
        "embd_pdrop": 0.1,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "mlp_bias": False,
        "resid_pdrop": 0.1,
    }
    assert normalise({**PHI3, **published}) == normalise(PHI3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True: only False"),
        ({"full_attn_mod": 2}, "full_attn_mod = 2: only 1"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "is linear; supported for phi3"),
        ({"rope_scaling": {"type": "longrope", **FACTORS}}, "short_factor.*list of 8 numbers"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types"),
    ],
)
def test_what_is_not_served_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise({**PHI3, **changes})
