"""The bundles of the tests, each built by the real build child and kept in `.build/` under its key.

Knows neither engines nor the reference; imports no JAX.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny.checkpoints import CACHE, checkpoint, checkpoint_directory
from tiny.families import FAMILY_MODELS
from tiny.vision_models import VISION, VisionModel

from vinfer.bundle.directory import is_bundle
from vinfer.checkpoint.source import resolve_source
from vinfer.compiler.plan import plan_build
from vinfer.config import ModelConfig
from vinfer.launch.bundles import find_or_build
from vinfer.launch.devices import Target

BUNDLES_DIR = CACHE / "test-bundles"

MAX_MODEL_LEN = 512
MAX_CHUNK = 64

# Three bucket edges, a prefill of two prompts, decode of 1, 2, 4 and 6 slots.
_WIDE: dict[str, Any] = {
    "num_slots": 6,
    "precompile": [
        {"batch_size": 1, "prefill_length": [8, 32, MAX_CHUNK]},
        {"batch_size": 2, "prefill_length": 32},
    ],
}
_NARROW: dict[str, Any] = {
    "num_slots": 2,
    "precompile": [{"batch_size": 1, "prefill_length": MAX_CHUNK}],
}
_PAIRS: dict[str, Any] = {"num_slots": 4, "precompile": [{"batch_size": 2, "prefill_length": 32}]}


def _encoders(model: VisionModel, *num_images: int) -> list[dict[str, int]]:
    """Return one encoder shape per number of images; for variable sizes, also one for two small images."""
    small = [{"batch_size": 2, "height": 48, "width": 36}] if model.grids else []
    return small + [
        {"batch_size": rows, "height": model.image_size, "width": model.image_size} for rows in num_images
    ]


def _with_images(name: str) -> dict[str, Any]:
    """Return a bundle with the smallest feature array, so that images evict each other."""
    return {
        "checkpoint": name,
        # A group of windows has pages for the slots and no more, and a test needs those of earlier prompts.
        "num_slots": 4 if name == "gemma3-images" else 2,
        "task": "image-text",
        "image_cache_bytes": 1,
        "precompile": [
            {"batch_size": 1, "prefill_length": [32, MAX_CHUNK], "vision": _encoders(VISION[name], 1, 2)},
            {"batch_size": 2, "prefill_length": 32},
        ],
    }


# For the parity matrix: few programs, but prompts still need several chunks.
FAMILY_CHUNK = 32
FAMILY_MAX_MODEL_LEN = 256
_FAMILY: dict[str, Any] = {
    "num_slots": 2,
    "max_model_len": FAMILY_MAX_MODEL_LEN,
    "precompile": [{"batch_size": 1, "prefill_length": FAMILY_CHUNK}],
}

BUNDLES: dict[str, dict[str, Any]] = {
    "llama": {"checkpoint": "llama", **_WIDE, "prompt_logprobs": True, "embeddings": "mean"},
    "llama-pinned": {
        "checkpoint": "llama",
        "num_slots": 6,
        "precompile": [{"batch_size": 1, "prefill_length": 32}],
        "prompt_logprobs": True,
        "deterministic": True,
    },
    "llama-speculating": {
        "checkpoint": "llama",
        **_WIDE,
        "speculation": {"ngram": 3, "tokens": 4},
    },
    "llama3-rope": {"checkpoint": "llama3-rope", **_PAIRS, "embeddings": "last"},
    "qwen2": {"checkpoint": "qwen2", **_NARROW},
    "qwen3": {"checkpoint": "qwen3", **_NARROW},
    "llama-bfloat16": {"checkpoint": "llama", **_NARROW, "max_model_len": 256, "dtype": "bfloat16"},
    "llama-tp2": {"checkpoint": "llama", **_NARROW, "mesh": {"tp": 2}},
    "llama-dp2": {"checkpoint": "llama", **_NARROW, "num_slots": 4, "mesh": {"dp": 2, "tp": 1}},
    "llama-dp2-tp2": {
        "checkpoint": "llama",
        **_PAIRS,
        "mesh": {"dp": 2, "tp": 2},
        "prompt_logprobs": True,
        "speculation": {"ngram": 3, "tokens": 4},
        "embeddings": "last",
    },
    # For two processes of one device each; the images' only encoder is small.
    "llama-of-two-hosts": {
        "checkpoint": "llama",
        **_NARROW,
        "mesh": {"tp": 2},
        "embeddings": "mean",
        "prompt_logprobs": True,
    },
    "llava-of-two-hosts": {
        "checkpoint": "llava-colours",
        **_NARROW,
        "max_model_len": 256,
        "task": "image-text",
        "image_cache_bytes": 1,
        "mesh": {"tp": 2},
        "precompile": [
            {"batch_size": 1, "prefill_length": MAX_CHUNK, "vision": _encoders(VISION["llava"], 1)}
        ],
    },
    "llama-fsdp2": {"checkpoint": "llama", **_NARROW, "mesh": {"fsdp": 2, "tp": 1}},
    "llama-two-kv-heads-tp4": {"checkpoint": "llama-two-kv-heads", **_NARROW, "mesh": {"tp": 4}},
    # Experts with biases, sinks and windows; fused projections that tp cuts across; experts over ep.
    "gpt-oss-tp2": {"checkpoint": "gpt-oss", **_NARROW, "mesh": {"tp": 2}},
    "phi3-tp2": {"checkpoint": "phi3", **_NARROW, "mesh": {"tp": 2}},
    "llava-colours": {
        "checkpoint": "llava-colours",
        **_NARROW,
        "max_model_len": 256,
        "task": "image-text",
        "image_cache_bytes": 1,
        "precompile": [
            {"batch_size": 1, "prefill_length": MAX_CHUNK, "vision": _encoders(VISION["llava"], 1)}
        ],
    },
    "qwen3-moe-ep2": {"checkpoint": "qwen3-moe-normalised", **_NARROW, "mesh": {"ep": 2, "tp": 1}},
}

SPECULATING_WITH_IMAGES = ("qwen2-vl", "gemma3-images")
"""Tokens that rotate by axes, and layers with windows."""
FAMILY_BUNDLES: dict[str, dict[str, Any]] = {
    **{name: _with_images(name) for name in VISION},
    **{
        name: {**_with_images(name), "speculation": {"ngram": 3, "tokens": 4}}
        for name in SPECULATING_WITH_IMAGES
    },
    **{name: {"checkpoint": name, **_FAMILY} for name in FAMILY_MODELS},
    **{f"{name}-bfloat16": {"checkpoint": name, **_FAMILY, "dtype": "bfloat16"} for name in FAMILY_MODELS},
}


MESHES_OF_ONE_KIND = ("llama-tp2", "llama-dp2")
"""Llama over tp and over dp, each of which llama-dp2-tp2 has too: for `scripts/test slow`."""


def model_config(bundle: str) -> ModelConfig:
    """Return the config of a model of `BUNDLES` or `FAMILY_BUNDLES`, as if read from YAML."""
    settings = dict({**BUNDLES, **FAMILY_BUNDLES}[bundle])
    source = checkpoint(settings.pop("checkpoint"))
    defaults = {
        "name": bundle,
        "source": str(source),
        "dtype": "float32",
        "mesh": {"tp": 1},
        "max_model_len": MAX_MODEL_LEN,
        "streaming_chunks": 4,
        "verify": "off",
    }
    return ModelConfig.model_validate({**defaults, **settings})


def build(bundle: str) -> Path:
    """Return the directory of a bundle, and build it if its key is not in `.build/`."""
    return find_or_build(
        model_config(bundle),
        where="models[0]",
        target=Target(platform="cpu", num_devices=4),
        bundles_dir=BUNDLES_DIR,
        progress=lambda *_: None,
    ).directory


def is_built(bundle: str) -> bool:
    """Whether the bundle is in `.build/`; where its checkpoint is missing too, it is not written."""
    if not checkpoint_directory({**BUNDLES, **FAMILY_BUNDLES}[bundle]["checkpoint"]).is_dir():
        return False
    model = model_config(bundle)
    plan = plan_build(
        model,
        resolve_source(model.source),
        where="models[0]",
        platform="cpu",
        num_devices=4,
        code_cache=BUNDLES_DIR,
    )
    return is_bundle(BUNDLES_DIR / plan.key)


def build_together(bundles: Sequence[str]) -> None:
    """Build several bundles by `tiny.build_together`; what fails there is left out."""
    if not all(map(is_built, bundles)):
        environ = {**os.environ, "JAX_PLATFORMS": "cpu", "ENABLE_DISTRIBUTED_INIT": "0"}
        with tempfile.TemporaryDirectory(prefix="ejit-") as scratch:
            subprocess.run(
                [sys.executable, "-m", "tiny.build_together", *bundles],
                cwd=Path(__file__).parents[1],
                env={**environ, "COMPILE_FUNC_DIR": scratch},
                check=True,
            )
