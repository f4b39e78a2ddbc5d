"""A checkpoint never runs code: refused before anything of it is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.safety import refuse_unsafe
from vinfer.checkpoint.source import resolve_source
from vinfer.errors import CheckpointError

AUTO_MAP = {"AutoConfig": "payload.Config", "AutoModelForCausalLM": "payload.Model"}


def _edit(path: Path, change: dict[str, object]) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))


@pytest.mark.parametrize(
    "file_name",
    [
        "config.json",
        "tokenizer_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "generation_config.json",
    ],
)
@pytest.mark.parametrize("change", [{"auto_map": AUTO_MAP}, {"deep": [{"er": {"auto_map": AUTO_MAP}}]}])
def test_auto_map_is_refused_and_its_module_never_runs(
    hf_directory: Callable[..., Path], tmp_path: Path, file_name: str, change: dict[str, object]
) -> None:
    directory = hf_directory()
    canary = tmp_path / "canary"
    (directory / "payload.py").write_text(f"open({str(canary)!r}, 'w')")
    _edit(directory / file_name, change)
    with pytest.raises(CheckpointError, match=f"{file_name}.*auto_map.*never runs"):
        open_checkpoint(resolve_source(str(directory)))
    assert not canary.exists()


def test_auto_map_is_refused_before_anything_else_is_judged(hf_directory: Callable[..., Path]) -> None:
    directory = hf_directory(model_type="llama", auto_map=AUTO_MAP)
    (directory / "model.safetensors").write_bytes(b"not safetensors")
    (directory / "tokenizer.json").write_text("not JSON")
    with pytest.raises(CheckpointError, match="auto_map"):
        open_checkpoint(resolve_source(str(directory)))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".ckpt", ".BIN"])
def test_weights_only_as_pickles_are_refused(hf_directory: Callable[..., Path], suffix: str) -> None:
    directory = hf_directory()
    (directory / f"weights{suffix}").write_bytes(b"\x80\x04.")
    refuse_unsafe(directory)  # with safetensors beside it, it is ignored
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"only as pickles \(weights{suffix}\).*safe_serialization"):
        open_checkpoint(resolve_source(str(directory)))


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", '{"a": ' * 50_000])
def test_a_file_that_cannot_be_judged_is_refused(hf_directory: Callable[..., Path], text: str) -> None:
    directory = hf_directory()
    (directory / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        open_checkpoint(resolve_source(str(directory)))
