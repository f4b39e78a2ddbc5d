"""The tensors that a config requires are those that transformers writes, and its facts survive JSON."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")

from safetensors import safe_open
from tiny.checkpoints import checkpoint
from tiny.families import cohere, glm, gpt, mistral, mixtures, olmo, phi, smollm, stablelm
from tiny.vision_models import VISION

from vinfer.checkpoint.normalise import normalise

FAMILIES = (cohere, glm, gpt, mistral, mixtures, olmo, phi, smollm, stablelm)


@pytest.mark.parametrize("name", [*(name for family in FAMILIES for name in family.MODELS), *VISION])
def test_a_config_says_what_is_beside_it(name: str) -> None:
    directory = checkpoint(name)
    with safe_open(directory / "model.safetensors", framework="np") as file:
        stored = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    normalised = normalise(json.loads((directory / "config.json").read_text()))
    written = {normalised.names.our_name(name): shape for name, shape in stored.items()}
    assert normalised.shapes == written
    assert json.loads(json.dumps(normalised.config)) == normalised.config
