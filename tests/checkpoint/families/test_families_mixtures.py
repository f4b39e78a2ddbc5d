"""Mistral, Mixtral, Qwen3-MoE and gpt-oss: one fact, one rule, one test; files written by transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from tiny.checkpoints import checkpoint

from vinfer.checkpoint.family import NormalisedConfig
from vinfer.checkpoint.normalise import normalise
from vinfer.errors import CheckpointError

NAMES = (
    "mistral",
    "mistral-no-window",
    "mixtral",
    "qwen3-moe",
    "qwen3-moe-normalised",
    "gpt-oss",
    "gpt-oss-no-bias",
)
Read = Callable[..., NormalisedConfig]


@pytest.fixture(scope="module")
def read() -> Read:
    """Return a function that normalizes a changed config of a tiny checkpoint; `...` removes a key."""

    def read(name: str, /, **changes: Any) -> NormalisedConfig:
        config = json.loads((checkpoint(name) / "config.json").read_text()) | changes
        return normalise({key: value for key, value in config.items() if value is not ...})

    return read


@pytest.mark.parametrize("name", NAMES)
def test_mixtures_say_so(read: Read, name: str) -> None:
    assert read(name).facts.is_mixture == (not name.startswith("mistral"))


@pytest.mark.parametrize(
    ("name", "changes", "windows"),
    [
        ("mistral", {}, (37, 37, 37)),
        ("mistral", {"sliding_window": None}, (None,) * 3),
        # The config class's default, which applies if a file of transformers 4 omits the key.
        ("mistral", {"sliding_window": ...}, (4096,) * 3),
        ("mixtral", {}, (37, 37, 37)),
        ("mixtral", {"sliding_window": ...}, (None,) * 3),
        ("qwen3-moe", {}, (41,) * 4),
        ("qwen3-moe", {"use_sliding_window": False}, (None,) * 4),
        ("qwen3-moe", {"sliding_window": ...}, (4096,) * 4),
        # Unlike for Qwen3, the modeling code does not read it.
        ("qwen3-moe", {"max_window_layers": 2}, (41,) * 4),
        ("gpt-oss", {}, (43, None, 43)),
        ("gpt-oss", {"layer_types": ...}, (43, None, 43)),
        ("gpt-oss", {"sliding_window": ...}, (128, None, 128)),
        ("gpt-oss-no-bias", {}, (None, 37)),
    ],
)
def test_windows(read: Read, name: str, changes: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    facts = read(name, **changes).facts
    assert facts.windows == windows


@pytest.mark.parametrize(
    ("name", "changes", "key", "value"),
    [
        ("mistral", {"head_dim": ...}, "head_dim", 16),
        ("mixtral", {}, "num_local_experts", 5),
        ("mixtral", {"num_local_experts": ..., "num_experts": 5}, "num_local_experts", 5),
        ("mixtral", {"num_experts_per_tok": ...}, "num_experts_per_tok", 2),
        ("qwen3-moe", {}, "num_experts", 7),
        ("qwen3-moe", {"num_local_experts": ..., "num_experts": 7}, "num_experts", 7),
        ("qwen3-moe", {}, "norm_topk_prob", False),
        ("qwen3-moe", {"norm_topk_prob": ...}, "norm_topk_prob", False),
        ("qwen3-moe-normalised", {}, "norm_topk_prob", True),
        ("qwen3-moe", {"head_dim": ...}, "head_dim", 16),
        ("qwen3-moe", {"mlp_only_layers": None}, "mlp_only_layers", []),
        ("qwen3-moe", {"decoder_sparse_step": ...}, "decoder_sparse_step", 1),
        ("gpt-oss", {"num_experts_per_tok": ..., "num_local_experts": 8}, "num_experts_per_tok", 4),
        ("gpt-oss", {"head_dim": ...}, "head_dim", 64),
        ("gpt-oss", {"head_dim": None}, "head_dim", 16),
        ("gpt-oss", {"attention_bias": ...}, "attention_bias", True),
    ],
)
def test_defaults_and_spellings(
    read: Read, name: str, changes: dict[str, Any], key: str, value: object
) -> None:
    assert read(name, **changes).config[key] == value


@pytest.mark.parametrize(
    ("name", "theta"), [("mistral", 1e4), ("mixtral", 1e6), ("qwen3-moe", 1e4), ("gpt-oss", 1.5e5)]
)
def test_theta_by_default(read: Read, name: str, theta: float) -> None:
    assert read(name, rope_parameters=...).ropes["default"].theta == theta


def test_gpt_oss_is_yarn_by_default(read: Read) -> None:
    scaling = {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    }
    published = read("gpt-oss", rope_parameters=..., rope_scaling=scaling, rope_theta=150000)
    assert read("gpt-oss", rope_parameters=...).ropes == published.ropes
    assert published.ropes["default"].rope_type == "yarn"


def test_some_layers_of_qwen3_moe_are_dense(read: Read) -> None:
    shapes = read("qwen3-moe").shapes
    dense = [layer for layer in range(4) if f"model.layers.{layer}.mlp.up_proj.weight" in shapes]
    assert dense == [0, 2, 3]


PUBLISHED_KEYS = {
    "mixtral": {"output_router_logits": True, "router_aux_loss_coef": 0.02, "router_jitter_noise": 0.1},
    "qwen3-moe": {"max_window_layers": 48, "router_aux_loss_coef": 0.001},
    "gpt-oss": {"swiglu_limit": 7.0, "initial_context_length": 4096, "experts_per_token": 4},
}


@pytest.mark.parametrize("name", PUBLISHED_KEYS)
def test_keys_without_effect(read: Read, name: str) -> None:
    assert read(name, **PUBLISHED_KEYS[name]) == read(name)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mixtral", {"num_local_experts": ...}, "has no num_experts"),
        ("mixtral", {"num_local_experts": 1}, "num_local_experts = 1: must be an integer from 2"),
        ("mixtral", {"num_experts": 6}, "num_experts = 6: contradicts num_local_experts = 5"),
        ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok = 6: must be an integer from 1 to 5"),
        ("qwen3-moe", {"mlp_only_layers": "3"}, "mlp_only_layers = '3': must be a list"),
        ("qwen3-moe", {"layer_types": ["full_attention"] * 4}, "layer_types = .*does not know this key"),
        ("qwen3-moe", {"num_key_value_heads": ...}, "num_key_value_heads"),
        ("gpt-oss", {"swiglu_limit": 8.0}, "swiglu_limit = 8.0: .* always clamp at 7.0"),
        ("gpt-oss", {"sliding_window": None}, "sliding_window = None: layers of type"),
        ("mistral", {"layer_types": ["full_attention"] * 3}, "layer_types = .*does not know this key"),
        ("mistral", {"sliding_window": 0}, "sliding_window = 0"),
    ],
)
def test_refusals(read: Read, name: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read(name, **changes)
