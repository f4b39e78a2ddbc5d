"""A bare decoder becomes a bundle that embeds; on the way, none of the checkpoint's own code runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="parity is measured against transformers with torch")

from tiny.checkpoints import random_model, write_tokenizer
from tiny.engines import GREEDY, Question, ask, load_engine
from tiny.prompts import prompt
from tiny.references import embedding_error

from vinfer.bundle.directory import read_manifest
from vinfer.config import ModelConfig
from vinfer.errors import ConfigError
from vinfer.launch.bundles import find_or_build
from vinfer.launch.devices import Target


def settings(directory: Path, **more: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "name": "headless",
            "source": str(directory),
            "dtype": "float32",
            "mesh": {"tp": 1},
            "max_model_len": 64,
            "num_slots": 2,
            "precompile": [{"batch_size": 1, "prefill_length": 32}],
            "verify": "off",
            **more,
        }
    )


def build(model: ModelConfig, bundles_dir: Path) -> Path:
    return find_or_build(
        model,
        where="models[0]",
        target=Target(platform="cpu", num_devices=4),
        bundles_dir=bundles_dir,
        progress=lambda *_: None,
    ).directory


@pytest.mark.bundles
def test_a_bare_decoder_embeds_and_its_code_never_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model("llama")
    directory, canary = tmp_path / "checkpoint", tmp_path / "canary"
    model.base_model.save_pretrained(directory)
    write_tokenizer(directory)
    (directory / "payload.py").write_text(f"open({str(canary)!r}, 'w').close()")
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlamaModel"]
    config["auto_map"] = {"AutoConfig": "payload.LlamaConfig", "AutoModel": "payload.LlamaModel"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match=r"without a head, which can only embed: set models\[0\]\.embeddings"
    ):
        build(settings(directory), tmp_path / "bundles")
    with pytest.raises(ConfigError, match=r"models\[0\]\.speculation is set; .* remove speculation"):
        build(settings(directory, embeddings="mean", speculation={}), tmp_path / "bundles")
    bundle = build(settings(directory, embeddings="mean"), tmp_path / "bundles")
    assert not read_manifest(bundle).model.has_head
    engine = load_engine(bundle, settings(directory, embeddings="mean"))
    try:
        params = dataclasses.replace(GREEDY, max_tokens=0, top_logprobs=None)
        question = Question(prompt(37), params, pooling="mean")
        [answer] = ask(engine, [question])
    finally:
        engine.stop()
    assert embedding_error(model, question, answer) <= 1e-5
    assert not canary.exists()
    assert [record.message for record in caplog.records if "is not run" in record.message]
