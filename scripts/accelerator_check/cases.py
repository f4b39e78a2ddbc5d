"""What is compiled: published models, cut to a few layers or whole, on some devices.

Two numbers of layers give the share of one layer, and so the figures of the whole model.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vinfer.bundle.manifest import Platform
from vinfer.bundle.programs import ProgramShape

ROOT = Path(__file__).parents[2]
MODELS = (
    "Llama-3.2-1B-Instruct",
    "Llama-3.1-8B",
    "gemma-3-1b-it",
    "gpt-oss-20b",
    "Qwen2.5-VL-7B-Instruct",
)
IMAGE_SIDE = 448
"""Pixels of the images of a model that takes them."""
DRAFT_TOKENS = {"Llama-3.2-1B-Instruct": 4}
"""Models that are checked with speculation, and the most tokens of a draft."""

Choice = Literal["all", "largest decode"]
KINDS: Mapping[Choice, tuple[str, ...]] = {
    "all": ("copy_page", "decode", "verify", "prefill"),
    "largest decode": ("decode",),
}
"""The kinds of programs that are compiled."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One model, cut to some layers.

    Attributes:
        config: config.json with `num_layers` layers.
        tp: devices that share the model.
        programs: which of its programs are compiled: see `KINDS`.
        draft_tokens: most tokens of a draft; 0 without speculation.
    """

    model: str
    config: dict[str, Any]
    num_layers: int
    platform: Platform
    tp: int
    programs: Choice = "all"
    draft_tokens: int = 0
    num_slots: int = 32
    max_model_len: int = 8192

    @property
    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """The folder of the case."""
        which = "" if self.programs == "all" else "-decode"
        return f"{self.model}-{self.num_layers}-{self.platform}-{self.tp}{which}"


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
    if "max_window_layers" in config:
        shorter["max_window_layers"] = min(config["max_window_layers"], num_layers)
    return shorter


def sizes(windows: Sequence[int | None]) -> tuple[int, int]:
    """Return two numbers of layers with the same shares of each window as the whole model.

    Args:
        windows: the window of each layer of the whole model.
    """
    period = next(
        length
        for length in range(1, len(windows) + 1)
        if all(window == windows[place % length] for place, window in enumerate(windows))
    )
    few = period * -(-2 // period)
    return few, 2 * few


def programs_to_check(shapes: Iterable[ProgramShape], choice: Choice = "all") -> tuple[ProgramShape, ...]:
    """Return copy_page, decode of one row, of the next number of rows and of all, and the longest prefill.

    With speculation, also verify of one row and of the most.

    "largest decode" leaves out the other decode programs. What it has besides decode is not compiled, but
    decides how many pages there are. Image encoders are in the plan of their model.
    """

    def size(shape: ProgramShape) -> int:
        return shape.rows * shape.length

    shapes = tuple(shapes)
    decode, prefill, verify = (
        sorted((shape for shape in shapes if shape.kind == kind), key=size)
        for kind in ("decode", "prefill", "verify")
    )
    encoders = [shape for shape in shapes if shape.kind == "encode_images"]
    if choice == "largest decode":
        return (decode[-1], prefill[-1], *encoders)
    copies = [shape for shape in shapes if shape.kind == "copy_page"]
    chosen = (*copies, *decode[:2], decode[-1], *verify[:1], *verify[-1:], prefill[-1], *encoders)
    return tuple(dict.fromkeys(chosen))
