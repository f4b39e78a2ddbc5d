"""`vinfer models inspect`: the facts of a checkpoint, and why one is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint.conftest import TinyModel, tiny_model, write_hf_directory

from vinfer.errors import CheckpointError

pytestmark = pytest.mark.processes


def inspected(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vinfer", "models", "inspect", str(directory), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_facts_of_a_checkpoint(tmp_path: Path) -> None:
    model = tiny_model("qwen3", dtype="bfloat16")
    directory = write_hf_directory(tmp_path / "model", model)
    process = inspected(directory, "--json")
    found = json.loads(process.stdout)
    count = sum(tensor.size for tensor in model.tensors.values())
    assert found["model_type"] == "qwen3"
    assert found["num_parameters"] == count
    assert found["weights_bytes"] == {"float32": 4 * count, "bfloat16": 2 * count, "float16": 2 * count}
    assert (found["stored_dtype"], found["format"]) == ("bfloat16", "safetensors")
    assert (found["num_positions"], found["default_max_model_len"]) == (128, 128)
    assert found["chat_template"] == "none: only completions and embeddings"
    assert found["takes_images"] is False
    lines = inspected(directory).stdout.splitlines()
    assert any(line.split() == ["model_type", "qwen3"] for line in lines)


def test_a_chat_template_is_found_and_one_that_does_not_compile_is_named(tmp_path: Path) -> None:
    directory = write_hf_directory(tmp_path / "model", tiny_model("llama"))
    (directory / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true}')
    (directory / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    found = json.loads(inspected(directory, "--json").stdout)
    assert (found["chat_template"], found["has_reasoning"]) == ("found", False)
    assert found["sampling_defaults"] == {"temperature": 0.6}
    (directory / "chat_template.jinja").write_text("{% for %}")
    found = json.loads(inspected(directory, "--json").stdout)
    assert "chat template" in found["chat_template"]


def test_what_is_refused_is_an_error(tmp_path: Path) -> None:
    model = tiny_model("llama")
    unsupported = TinyModel(model.config | {"model_type": "mamba", "architectures": ["Mamba"]}, model.tensors)
    process = inspected(write_hf_directory(tmp_path / "model", unsupported), "--json")
    assert (process.returncode, process.stdout) == (CheckpointError.exit_code, "")
    assert "mamba" in process.stderr
    process = inspected(tmp_path / "none")
    assert process.returncode == CheckpointError.exit_code
    assert "does not exist" in process.stderr
