"""Writes the programs of a published config.json, without weights, for one platform.

    python -m accelerator_check.export DIRECTORY CASE_JSON...

Each case gets a folder of its own name.

Runs in a process of its own: EasyDeL, which it imports, sets flags that end the TPU compiler.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerator_check.cases import Case, programs_to_check
from vinfer.checkpoint.generation import GenerationFacts
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.source import ResolvedSource
from vinfer.compiler.export.bundle import ATTENTION_BLOCK_LEN, build_programs
from vinfer.compiler.plan import plan_build
from vinfer.config import ModelConfig


class ConfigOnly:
    """A `Checkpoint` of which only config.json exists."""

    vision = None
    image_processing = None
    generation = GenerationFacts()

    def __init__(self, raw: Mapping[str, Any]) -> None:
        normalised = normalise(raw)
        self.model_type = normalised.model_type
        self.config = normalised.config
        self.hugging_face_config = dict(raw)
        self.ropes = normalised.ropes
        self.facts = normalised.facts
        self._shapes = normalised.shapes

    def tensor_names(self) -> list[str]:
        return list(self._shapes)

    def tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name: str) -> Any:
        raise AssertionError(f"{name} has no values: only config.json exists")

    def write_tokenizer(self, directory: Path) -> None:
        raise AssertionError(f"no tokenizer for {directory}: only config.json exists")


def export(case: Case, directory: Path) -> None:
    """Write a manifest, programs/ and block_len, which the reader of loops needs."""
    model = ModelConfig.model_validate(
        {
            "name": case.model,
            "source": case.model,
            "dtype": "bfloat16",
            "num_slots": case.num_slots,
            "max_model_len": case.max_model_len,
            "mesh": {"tp": case.tp},
        }
    )
    source = ResolvedSource(case.model, "hf", Path(case.model), {"config": case.config})
    plan = plan_build(model, source, where=case.model, platform=case.platform, num_devices=case.tp)
    plan = dataclasses.replace(plan, programs=programs_to_check(plan.programs))
    directory.mkdir(parents=True, exist_ok=True)
    build_programs(plan, ConfigOnly(case.config), directory, lambda *_: None)
    (directory / "block_len").write_text(str(ATTENTION_BLOCK_LEN[case.platform]))


if __name__ == "__main__":
    for text in sys.argv[2:]:
        case = Case(**json.loads(text))
        export(case, Path(sys.argv[1]) / case.name)
