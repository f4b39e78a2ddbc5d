"""Gemma 2 and Gemma 3: one fact, one rule, one test; configs of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from vinfer.checkpoint.normalise import normalise
from vinfer.errors import CheckpointError

SIZES: dict[str, Any] = {
    "vocab_size": 304,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}
GEMMA2 = {**SIZES, "model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}
GEMMA3 = {**SIZES, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}


def test_gemma2_slides_on_every_other_layer_and_gemma3_on_five_of_six() -> None:
    assert normalise({**GEMMA2, "sliding_window": 32}).facts.windows == (32, None) * 3 + (32,)
    assert normalise({**GEMMA3, "sliding_window": 32}).facts.windows == (32,) * 5 + (None, 32)
    assert normalise(GEMMA2).facts.windows[0] == 4096


@pytest.mark.parametrize(
    ("key", "windows"),
    [
        ("sliding_window_pattern", (32, None) * 3 + (32,)),
        # transformers writes it and does not read it.
        ("_sliding_window_pattern", (32,) * 5 + (None, 32)),
    ],
)
def test_the_pattern_of_older_files_is_read(key: str, windows: tuple[int | None, ...]) -> None:
    assert normalise({**GEMMA3, "sliding_window": 32, key: 2}).facts.windows == windows


def test_layer_types_win_over_the_pattern() -> None:
    layer_types = ["full_attention"] * 6 + ["sliding_attention"]
    config = {**GEMMA3, "sliding_window": 8, "sliding_window_pattern": 2, "layer_types": layer_types}
    normalised = normalise(config)
    assert normalised.facts.windows == (None,) * 6 + (8,)
    assert normalised.config["layer_types"] == layer_types


def test_soft_caps_have_the_defaults_of_their_generation_and_null_means_none() -> None:
    config = normalise(GEMMA2).config
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 30.0)
    config = normalise({**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": 7}).config
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (None, 7.0)
    assert normalise(GEMMA3).config["final_logit_softcapping"] is None


def test_gemma3_has_a_rotary_table_per_layer_type() -> None:
    ropes = normalise(GEMMA3).ropes
    assert {kind: rope.theta for kind, rope in ropes.items()} == {
        "full_attention": 1e6,
        "sliding_attention": 1e4,
    }


def test_scaling_of_transformers_4_is_of_the_full_layers_only() -> None:
    config = {
        **GEMMA3,
        "rope_theta": 5e5,
        "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    ropes = normalise(config).ropes
    full, sliding = ropes["full_attention"], ropes["sliding_attention"]
    assert (full.rope_type, full.theta, full.factor) == ("linear", 5e5, 8.0)
    assert (sliding.rope_type, sliding.theta) == ("default", 2e4)


def test_heads_default_to_those_of_transformers() -> None:
    config = {key: value for key, value in GEMMA2.items() if key not in ("head_dim", "num_key_value_heads")}
    facts = normalise(config).facts
    assert (facts.key_dim, facts.value_dim, facts.num_kv_heads) == (256, 256, 4)


def test_the_head_is_tied_unless_the_file_says_otherwise() -> None:
    assert normalise(GEMMA3).facts.is_tied
    untied = normalise({**GEMMA3, "tie_word_embeddings": False})
    assert not untied.facts.is_tied
    assert untied.shapes["lm_head.weight"] == (304, 64)


def test_only_gemma3_has_norms_of_heads() -> None:
    names = ("model.layers.0.self_attn.q_norm.weight", "model.layers.6.self_attn.k_norm.weight")
    assert [normalise(GEMMA3).shapes[name] for name in names] == [(16,), (16,)]
    assert not set(names) & set(normalise(GEMMA2).shapes)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention = True.*causal"),
        (GEMMA3, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0.*ignores it"),
        (GEMMA2, {"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        (GEMMA2, {"rope_local_base_freq": 1e4}, "rope_local_base_freq.*does not know"),
        (GEMMA3, {"layer_types": ["chunked_attention"] * 7}, "chunked_attention"),
        (GEMMA3, {"architectures": ["Gemma3ForConditionalGeneration"]}, "Gemma3ForCausalLM"),
        (GEMMA3, {"sliding_window": 0}, "sliding_window = 0"),
        (GEMMA2, {"sliding_window": None}, "sliding_window = None: layers of type sliding_attention need"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        normalise({**config, **changes})
