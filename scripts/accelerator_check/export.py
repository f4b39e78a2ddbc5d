"""Writes the programs of a published config.json, without weights, for one platform.

    python -m accelerator_check.export DIRECTORY CASE_JSON...

Each case gets a folder of its own name.

Runs in a process of its own: EasyDeL, which it imports, sets flags that end the TPU compiler.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerator_check.cases import IMAGE_SIDE, Case, programs_to_check
from vinfer.checkpoint.generation import GenerationFacts
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.source import ResolvedSource
from vinfer.checkpoint.vision import VisionFacts
from vinfer.compiler.export.bundle import ATTENTION_BLOCK_LEN, build_programs
from vinfer.compiler.plan import plan_build
from vinfer.config import ModelConfig
from vinfer.image_processing import ImageProcessing


class ConfigOnly:
    """A `Checkpoint` of which only config.json exists."""

    generation = GenerationFacts()

    def __init__(self, raw: Mapping[str, Any]) -> None:
        normalised = normalise(raw)
        self.model_type = normalised.model_type
        self.config = normalised.config
        self.hugging_face_config = dict(raw)
        self.ropes = normalised.ropes
        self.facts = normalised.facts
        self._shapes = normalised.shapes
        self.vision = normalised.vision
        self.image_processing = None if self.vision is None else _published_processing(self.vision)

    def tensor_names(self) -> list[str]:
        return list(self._shapes)

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> Any:
        raise AssertionError(f"{name} has no values: only config.json exists")

    def write_tokenizer(self, directory: Path) -> None:
        raise AssertionError(f"no tokenizer for {directory}: only config.json exists")


def _published_processing(vision: VisionFacts) -> ImageProcessing:
    """Return how Qwen2-VL and Qwen2.5-VL prepare images, as published."""
    stated = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "preprocessor_config.json").write_text(json.dumps(stated))
        return vision.read_processing(Path(directory))


def export(case: Case, directory: Path) -> None:
    """Write a manifest, programs/ and block_len, which the reader of loops needs."""
    checkpoint = ConfigOnly(case.config)
    fields = {
        "name": case.model,
        "source": case.model,
        "dtype": "bfloat16",
        "num_slots": case.num_slots,
        "max_model_len": case.max_model_len,
        "mesh": {"tp": case.tp},
    }
    if case.draft_tokens:
        fields["speculation"] = {"tokens": case.draft_tokens}
    if checkpoint.vision is not None:
        images = {"vision": {"height": IMAGE_SIDE, "width": IMAGE_SIDE}}
        fields |= {"task": "image-text", "precompile": [images]}
    model = ModelConfig.model_validate(fields)
    source = ResolvedSource(case.model, "hf", Path(case.model), {"config": case.config})
    plan = plan_build(model, source, where=case.model, platform=case.platform, num_devices=case.tp)
    plan = dataclasses.replace(plan, programs=programs_to_check(plan.programs, case.programs))
    directory.mkdir(parents=True, exist_ok=True)
    build_programs(plan, checkpoint, directory, lambda *_: None)
    (directory / "block_len").write_text(str(ATTENTION_BLOCK_LEN[case.platform]))


if __name__ == "__main__":
    for text in sys.argv[2:]:
        case = Case(**json.loads(text))
        export(case, Path(sys.argv[1]) / case.name)
