"""OLMo 2 and 3: one fact, one rule, one test; configs of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
OLMO2 = {**SIZES, "model_type": "olmo2", "architectures": ["Olmo2ForCausalLM"]}
OLMO3 = {**SIZES, "model_type": "olmo3", "architectures": ["Olmo3ForCausalLM"]}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}


def test_olmo3_slides_on_three_of_four_layers_and_olmo2_on_none() -> None:
    assert normalise(OLMO2).facts.windows == (None,) * 5
    assert normalise(OLMO3).facts.windows == (4096, 4096, 4096, None, 4096)
    changes = {"sliding_window": 8, "layer_types": ["full_attention"] * 4 + ["sliding_attention"]}
    assert normalise({**OLMO3, **changes}).facts.windows == (None,) * 4 + (8,)


@pytest.mark.parametrize(
    "form",
    [{"rope_parameters": YARN | {"rope_theta": 5e5}}, {"rope_scaling": YARN, "rope_theta": 5e5}],
    ids=["transformers 5", "transformers 4"],
)
def test_only_the_full_layers_of_olmo3_are_scaled(form: dict[str, Any]) -> None:
    ropes = normalise({**OLMO3, **form}).ropes
    assert ropes["sliding_attention"] == RopeFacts(theta=5e5, rotary_dim=16)
    full = ropes["full_attention"]
    assert (full.rope_type, full.theta, full.factor) == ("yarn", 5e5, 8.0)
    assert normalise({**OLMO2, **form}).ropes == {"default": full}


def test_the_norms_stand_after_the_blocks_and_over_whole_projections() -> None:
    shapes = normalise({**OLMO2, "head_dim": 24}).shapes
    layer = {name.removeprefix("model.layers.0."): shape for name, shape in shapes.items()}
    assert {name: shape for name, shape in layer.items() if "layernorm" in name and "layers" not in name} == {
        "post_attention_layernorm.weight": (64,),
        "post_feedforward_layernorm.weight": (64,),
    }
    assert layer["self_attn.q_norm.weight"] == (96,)
    assert layer["self_attn.k_norm.weight"] == (48,)


@pytest.mark.parametrize("config", [OLMO2, OLMO3], ids=["olmo2", "olmo3"])
def test_the_defaults_are_those_of_transformers(config: dict[str, Any]) -> None:
    normalised = normalise({**config, "num_key_value_heads": None})
    assert normalised.config["rms_norm_eps"] == 1e-5
    assert normalised.facts.num_kv_heads == 4
    assert not normalised.facts.is_tied


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (OLMO2, {"clip_qkv": 8.0}, "clip_qkv = 8.0.*does not know"),
        (OLMO2, {"sliding_window": 32}, "sliding_window = 32"),
        (OLMO3, {"head_dim": 24}, "head_dim = 24.*always uses.*16"),
        (OLMO3, {"sliding_window": None}, "sliding_window = None: layers of type"),
        (OLMO3, {"layer_types": ["full_attention"]}, "1 entries for num_hidden_layers = 5"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise({**config, **changes})
