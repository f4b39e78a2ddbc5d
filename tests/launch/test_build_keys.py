"""The keys that `vinfer config diff` calls a rebuild are those that the key of a bundle depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint.conftest import tiny_model, write_hf_directory

from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.plan import plan_key
from vinfer.config import BUILD_KEYS, ModelConfig

# What a test can change without a hub or another checkpoint; image_cache_bytes counts only with images.
CHANGED: dict[str, Any] = {
    "name": "other",
    "task": "image-text",
    "dtype": "float32",
    "mesh": {"tp": 1, "dp": 2},
    "max_model_len": 64,
    "num_slots": 2,
    "kv_cache": {"pages": 9},
    "prefix_cache": "off",
    "streaming_chunks": 2,
    "max_queue": 3,
    "max_queue_per_key": 3,
    "max_running_per_key": 1,
    "verify_weights": True,
    "required": False,
    "max_restarts": 0,
    "speculation": {"ngram": 2, "tokens": 3},
    "deterministic": True,
    "max_programs": 99,
    "image_cache_bytes": 2**20,
    "precompile": [{"batch_size": 1, "prefill_length": 16}],
    "prompt_logprobs": True,
    "embeddings": "last",
    "tool_parser": "none",
    "reasoning_parser": "none",
    "sampling": {"top_k": 3},
    "chat_template_kwargs": {"style": "string"},
    "verify": "off",
}
VISION = [{"batch_size": 1, "prefill_length": 32, "vision": {"height": 16, "width": 16}}]


def test_every_key_is_either_changed_here_or_needs_another_checkpoint() -> None:
    assert {*ModelConfig.model_fields} - {*CHANGED} == {"source", "revision"}
    assert {*BUILD_KEYS} <= {*ModelConfig.model_fields}


@pytest.mark.parametrize("key", CHANGED)
def test_a_key_changes_the_bundle_if_it_is_said_to(key: str, tmp_path: Path) -> None:
    source = resolve_source(str(write_hf_directory(tmp_path / "checkpoint", tiny_model("llama"))))

    def bundle(**fields: Any) -> str:
        model = {
            "name": "m",
            "source": str(source.path),
            "num_slots": 4,
            "mesh": {"tp": 2},
            "precompile": [{"batch_size": 1, "prefill_length": 32}],
            **fields,
        }
        return plan_key(
            ModelConfig.model_validate(model), source, where="models[0]", platform="cpu", num_devices=2
        )

    before: dict[str, Any] = {}
    changed = {key: CHANGED[key]}
    if key == "task":
        changed["precompile"] = VISION
    if key == "image_cache_bytes":
        before = {"task": "image-text", "precompile": VISION}
    assert (bundle(**before) != bundle(**before, **changed)) == (key in BUILD_KEYS)
