"""Configs read by vinfer and by transformers give the same frequencies and tables."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
import pytest

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.families.gpt import with_usual_names
from vinfer.checkpoint.rope.config import LayerRope, read_rope, read_ropes_by_layer_type
from vinfer.checkpoint.rope.facts import RopeFacts

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

HEAD_DIM, HEADS, LENGTH = 64, 4, 4096
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
PAIRS = HEAD_DIM // 2
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.05 * pair for pair in range(PAIRS)],
    "long_factor": [1.0 + 1.7 * pair for pair in range(PAIRS)],
}
HALF_LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.05 * pair for pair in range(PAIRS // 2)],
    "long_factor": [1.1 + 1.7 * pair for pair in range(PAIRS // 2)],
}
PHI3 = {"default_partial_rotary_factor": 1.0, "default_original_length": 4096}
NEOX = {"default_partial_rotary_factor": 0.25}
HALF = {"default_partial_rotary_factor": 0.5}

# (family, rope keys of config.json, arguments of read_rope)
FLAT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {}),
    ("llama", {"rope_theta": 5e5}, {}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 150000}}, {}),
    ("llama", {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default", "rope_theta": 2e6}}, {}),
    ("llama", {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 3.0}}, {}),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 8.0, "low_freq_factor": 2.0}}, {}),
    (
        "llama",
        {
            "rope_scaling": {"rope_type": "linear", "factor": 3.0},
            "rope_parameters": {"rope_type": "linear", "factor": 5.0, "rope_theta": 7e4},
        },
        {},
    ),
    ("llama", {"rope_scaling": {"rope_type": "default", "type": "linear", "factor": 3.0}}, {}),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 4.1}}, {}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "dynamic", "factor": 2}}, {}),
    ("llama", {"rope_parameters": LLAMA3 | {"rope_theta": 5e5, "original_max_position_embeddings": 512}}, {}),
    ("llama", {"rope_theta": 5e5, "rope_scaling": LLAMA3}, {}),
    (
        "llama",
        {
            "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 2048},
            "original_max_position_embeddings": 256,
        },
        {},
    ),
    ("llama", {"rope_scaling": YARN | {"original_max_position_embeddings": 1024}}, {}),
    ("llama", {"rope_theta": 1e6, "rope_scaling": YARN}, {}),
    ("llama", {"rope_scaling": YARN | {"attention_factor": 1.3, "mscale": 0.7, "mscale_all_dim": 0.9}}, {}),
    ("llama", {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.9, "factor": 40}}, {}),
    ("llama", {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0, "beta_fast": 0}}, {}),
    (
        "llama",
        {"rope_scaling": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False, "factor": 32.0}},
        {},
    ),
    ("llama", {"rope_scaling": YARN | {"beta_fast": 1.0, "original_max_position_embeddings": 1}}, {}),
    ("llama", {"rope_scaling": YARN | {"factor": 0.5}}, {}),
    ("llama", {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 1024}}, {}),
    ("llama", {"rope_parameters": LONGROPE}, {}),
    ("llama", {"rope_scaling": LONGROPE | {"factor": 8.0, "original_max_position_embeddings": 4095}}, {}),
    ("llama", {"rope_scaling": LONGROPE | {"attention_factor": 1.19}}, {}),
    ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 1024}, PHI3),
    ("phi3", {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 1024}}, PHI3),
    (
        "phi3",
        {
            "rope_scaling": HALF_LONGROPE,
            "original_max_position_embeddings": 1024,
            "partial_rotary_factor": 0.5,
        },
        PHI3,
    ),
    (
        "phi3",
        {
            "rope_parameters": HALF_LONGROPE | {"partial_rotary_factor": 0.5},
            "original_max_position_embeddings": 4096,
        },
        PHI3,
    ),
    ("phi3", {"rope_scaling": None, "partial_rotary_factor": 0.75}, PHI3),
    ("phi3", {}, PHI3),
    ("gpt_neox", {}, NEOX),
    ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 25000}, NEOX),
    (
        "gpt_neox",
        {"rotary_pct": 0.5, "rope_parameters": {"rope_theta": 3e4, "partial_rotary_factor": 0.125}},
        NEOX,
    ),
    ("gpt_neox", {"rotary_pct": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}}, NEOX),
    ("gpt_neox", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, NEOX),
    ("phi", {}, HALF),
    ("phi", {"partial_rotary_factor": 0.375}, HALF),
    (
        "phi",
        {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25, "rope_theta": 2e4}},
        HALF,
    ),
    ("phi", {"rope_scaling": YARN}, HALF),
    ("phi", {"rope_scaling": LLAMA3, "rope_theta": 5e5}, HALF),
    (
        "stablelm",
        {"partial_rotary_factor": 0.25, "rope_theta": 10000},
        {"default_partial_rotary_factor": 0.25},
    ),
    ("qwen2_vl", {"rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]}, "rope_theta": 1e6}, {}),
]
CLASSES = {
    "llama": ("LlamaConfig", "LlamaRotaryEmbedding"),
    "phi3": ("Phi3Config", "Phi3RotaryEmbedding"),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXRotaryEmbedding"),
    "phi": ("PhiConfig", "PhiRotaryEmbedding"),
    "stablelm": ("StableLmConfig", "StableLmRotaryEmbedding"),
    "gemma3": ("Gemma3TextConfig", "Gemma3RotaryEmbedding"),
    "gemma4": ("Gemma4TextConfig", "Gemma4TextRotaryEmbedding"),
    "qwen2_vl": ("Qwen2VLTextConfig", "Qwen2VLRotaryEmbedding"),
}
LAYER_TYPES = ["sliding_attention", "full_attention"]
GEMMA3 = {
    "full_attention": LayerRope(theta=1e6, theta_key="rope_theta", takes_rope_scaling=True),
    "sliding_attention": LayerRope(theta=1e4, theta_key="rope_local_base_freq"),
}
GEMMA4 = {
    "full_attention": LayerRope(
        theta=1e6, parameters={"rope_type": "proportional", "partial_rotary_factor": 0.25}, head_dim=128
    ),
    "sliding_attention": LayerRope(theta=1e4),
}
BY_LAYER_TYPE: list[tuple[str, dict[str, Any], dict[str, LayerRope]]] = [
    ("gemma3", {}, GEMMA3),
    ("gemma3", {"rope_theta": 2e6, "rope_local_base_freq": 3e4}, GEMMA3),
    ("gemma3", {"rope_theta": 2e6, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, GEMMA3),
    (
        "gemma3",
        {
            "rope_theta": 2e6,
            "rope_local_base_freq": 3e4,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e6},
                "sliding_attention": {"rope_type": "default"},
            },
        },
        GEMMA3,
    ),
    (
        "gemma3",
        {
            "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e6}},
            "rope_scaling": {"factor": 2.0},
        },
        GEMMA3,
    ),
    ("gemma3", {"rope_scaling": LLAMA3, "original_max_position_embeddings": 64}, GEMMA3),
    ("gemma4", {}, GEMMA4),
    (
        "gemma4",
        {
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "proportional",
                    "partial_rotary_factor": 0.3,
                    "rope_theta": 3e6,
                    "factor": 2.0,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            }
        },
        GEMMA4,
    ),
]


def _raw(family: str, rope: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "hidden_size": HEADS * HEAD_DIM,
        "num_attention_heads": HEADS,
        "max_position_embeddings": LENGTH,
    }
    if family.startswith("gemma"):
        raw |= {"head_dim": HEAD_DIM, "num_hidden_layers": 2, "layer_types": LAYER_TYPES}
    if family == "gemma4":
        raw |= {"global_head_dim": 128}
    return copy.deepcopy(raw | rope)


def _rotary_embedding(family: str, rope: dict[str, Any]) -> Any:
    config_name, embedding_name = CLASSES[family]
    config = getattr(importlib.import_module("transformers"), config_name)(**_raw(family, rope))
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    return getattr(module, embedding_name)(config)


def _assert_same(
    facts: RopeFacts, embedding: Any, prefix: str, length: int, arguments: dict[str, str]
) -> None:
    """Compare frequencies within two units in the last place, and tables within the resulting error."""
    positions = torch.arange(length)[None]
    if type(embedding).__name__ == "Qwen2VLRotaryEmbedding":
        positions = positions[None].expand(3, 1, length)
    cos, sin = (
        part.reshape(-1, length, part.shape[-1])[0].numpy()
        for part in embedding(torch.zeros(1), positions, **arguments)
    )
    # transformers' longrope chooses in the forward pass.
    expected = getattr(embedding, f"{prefix}inv_freq").numpy()
    frequencies = facts.inverse_frequencies(length)
    assert frequencies.shape == expected.shape == (facts.rotary_dim // 2,)
    np.testing.assert_array_max_ulp(frequencies, expected, maxulp=2)
    assert facts.attention_factor == getattr(embedding, f"{prefix}attention_scaling")
    pairs = facts.rotary_dim // 2
    table = facts.table(length)
    angles = np.outer(np.arange(length), expected)
    limit = facts.attention_factor * (1.5 * angles + 1) * 2**-22
    for ours, theirs in ((table[:, :pairs], cos), (table[:, pairs:], sin)):
        # transformers writes each half twice, for rotate_half.
        np.testing.assert_array_equal(theirs[:, :pairs], theirs[:, pairs:])
        assert (np.abs(ours - theirs[:, :pairs]) <= limit).all()


def _keys(family: str, raw: dict[str, Any]) -> ConfigKeys:
    keys = ConfigKeys(raw, "config.json")
    return with_usual_names(keys) if family == "gpt_neox" else keys


@pytest.mark.parametrize("length", [LENGTH, 700])
@pytest.mark.parametrize(("family", "rope", "arguments"), FLAT)
def test_tables_are_those_of_transformers(
    family: str, rope: dict[str, Any], arguments: dict[str, Any], length: int
) -> None:
    extra: dict[str, Any] = {}
    if family == "qwen2_vl":
        extra = {
            "default_theta": 1e6,
            "renamed_types": {"mrope": "default"},
            "family_keys": {"mrope_section"},
        }
    facts = read_rope(_keys(family, _raw(family, rope)), head_dim=HEAD_DIM, **arguments, **extra)
    _assert_same(facts, _rotary_embedding(family, rope), "", length, {})


@pytest.mark.parametrize(("family", "rope", "defaults"), BY_LAYER_TYPE)
def test_tables_per_layer_type_are_those_of_transformers(
    family: str, rope: dict[str, Any], defaults: dict[str, LayerRope]
) -> None:
    keys = ConfigKeys(_raw(family, rope), "config.json")
    facts = read_ropes_by_layer_type(keys, head_dim=HEAD_DIM, defaults=defaults)
    embedding = _rotary_embedding(family, rope)
    assert set(facts) == set(LAYER_TYPES)
    for layer_type in LAYER_TYPES:
        _assert_same(facts[layer_type], embedding, f"{layer_type}_", LENGTH, {"layer_type": layer_type})


def test_what_transformers_writes_reads_the_same() -> None:
    """A config in the old form gives the same facts after transformers 5 saves it in the new form."""
    for family, rope, arguments in FLAT:
        if family == "qwen2_vl":
            continue
        config_name, _ = CLASSES[family]
        config = getattr(importlib.import_module("transformers"), config_name)(**_raw(family, rope))
        written = {
            key: value
            for key, value in config.to_dict().items()
            if key in _raw(family, rope) or key in ("rope_parameters", "original_max_position_embeddings")
        }
        assert "rope_theta" in written["rope_parameters"]
        assert read_rope(_keys(family, written), head_dim=HEAD_DIM, **arguments) == read_rope(
            _keys(family, _raw(family, rope)), head_dim=HEAD_DIM, **arguments
        ), rope
