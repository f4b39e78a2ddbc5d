"""Cohere 2: one fact, one rule, one test; configs of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.checkpoint.normalise import normalise
from vinfer.errors import CheckpointError

COHERE2: dict[str, Any] = {
    "model_type": "cohere2",
    "architectures": ["Cohere2ForCausalLM"],
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("changes", "layer_types"),
    [
        ({}, [SLIDING, SLIDING, SLIDING, FULL, SLIDING]),
        ({"sliding_window_pattern": 2}, [SLIDING, FULL, SLIDING, FULL, SLIDING]),
        (
            {"sliding_window_pattern": 2, "layer_types": [FULL, SLIDING] * 2 + [FULL]},
            [FULL, SLIDING] * 2 + [FULL],
        ),
    ],
)
def test_layers_slide_by_type_or_pattern(changes: dict[str, Any], layer_types: list[str]) -> None:
    normalised = normalise({**COHERE2, "sliding_window": 32, **changes})
    # EasyDeL's module reads which layers rotate from it.
    assert normalised.config["layer_types"] == layer_types
    assert normalised.facts.windows == tuple(32 if kind == SLIDING else None for kind in layer_types)


def test_the_defaults_are_those_of_transformers() -> None:
    normalised = normalise(COHERE2)
    assert normalised.facts.is_tied
    assert normalised.facts.windows[0] == 4096
    assert (normalised.config["logit_scale"], normalised.config["layer_norm_eps"]) == (0.0625, 1e-5)
    changed = normalise({**COHERE2, "logit_scale": 0.25, "layer_norm_eps": 1e-6}).config
    assert (changed["logit_scale"], changed["layer_norm_eps"]) == (0.25, 1e-6)


def test_a_layer_has_one_norm() -> None:
    norms = [name for name in normalise(COHERE2).shapes if "norm" in name and ".0." in name]
    assert norms == ["model.layers.0.input_layernorm.weight"]


def test_what_published_files_state_besides_is_no_obstacle() -> None:
    published = {
        "_sliding_window_pattern": 4,
        "cache_implementation": "hybrid",
        "layer_switch": 4,
        "order_of_interleaved_layers": "local_attn_first",
        "position_embedding_type": "rope_gptj",
        "rotary_pct": 1.0,
        "use_embedding_sharing": True,
        "use_gated_activation": True,
        "use_parallel_block": True,
        "use_parallel_embedding": True,
        "use_qk_norm": False,
    }
    assert normalise({**COHERE2, **published}) == normalise(COHERE2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_qk_norm": True}, "use_qk_norm = True: only False"),
        ({"position_embedding_type": "rope_neox"}, "position_embedding_type.*only 'rope_gptj'"),
        ({"sliding_window": None}, "sliding_window = None: layers of type"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern = 0"),
        ({"logit_scale": 0}, "logit_scale"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ],
)
def test_what_is_not_served_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise({**COHERE2, **changes})
