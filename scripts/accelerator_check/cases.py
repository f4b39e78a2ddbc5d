"""What is compiled: a published model with a few of its layers, on one platform.

Two numbers of layers give the share of one layer, and so the figures of the whole model.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vinfer.bundle.manifest import Platform
from vinfer.bundle.programs import ProgramShape

ROOT = Path(__file__).parents[2]
MODELS = ("Llama-3.2-1B-Instruct", "Llama-3.1-8B")
CHECKED_KINDS = ("decode", "prefill")


@dataclasses.dataclass(frozen=True)
class Case:
    """One model, cut to some layers.

    Attributes:
        config: config.json with `num_layers` layers.
        tp: devices that share the model.
    """

    model: str
    config: dict[str, Any]
    num_layers: int
    platform: Platform
    tp: int
    num_slots: int = 32
    max_model_len: int = 8192

    @property
    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def name(self) -> str:
        return f"{self.model}-{self.num_layers}-{self.platform}-{self.tp}"


def published_config(model: str) -> dict[str, Any]:
    """Return the config.json of a published model, as the tests have it."""
    sys.path.insert(0, str(ROOT / "tests/checkpoint/families"))
    from published_configs import published

    return published(model)


def cut(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """Return a config with the first `num_layers` layers."""
    shorter = {**config, "num_hidden_layers": num_layers}
    for key, value in config.items():
        # What is stated per layer, such as layer_types.
        if isinstance(value, list) and len(value) == config["num_hidden_layers"]:
            shorter[key] = value[:num_layers]
    return shorter


def programs_to_check(shapes: Iterable[ProgramShape]) -> tuple[ProgramShape, ...]:
    """Return copy_page, and the smallest and the largest program of each kind that computes."""
    shapes = tuple(shapes)
    kept = [shape for shape in shapes if shape.kind == "copy_page"]
    for kind in CHECKED_KINDS:
        of_kind = sorted(
            (shape for shape in shapes if shape.kind == kind), key=lambda shape: shape.rows * shape.length
        )
        kept += [of_kind[0]] if len(of_kind) == 1 else [of_kind[0], of_kind[-1]]
    return tuple(kept)
