"""Unsafe checkpoints are refused before anything is loaded, so they never run code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from vinfer.checkpoint.checkpoint import open_checkpoint
from vinfer.checkpoint.safety import without_code
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
        "video_preprocessor_config.json",
        "audio_tokenizer_config.json",
        "generation_config.json",
    ],
)
@pytest.mark.parametrize("change", [{"auto_map": AUTO_MAP}, {"deep": [{"er": {"auto_map": AUTO_MAP}}]}])
def test_auto_map_is_refused_and_its_module_never_runs(
    hf_directory: Callable[..., Path], tmp_path: Path, file_name: str, change: dict[str, object]
) -> None:
    directory = hf_directory()
    canary = tmp_path / "canary"
    payload = f"open({str(canary)!r}, 'w').close()"
    (directory / "payload.py").write_text(payload)
    _edit(directory / file_name, change)
    with pytest.raises(CheckpointError, match=f"{file_name}.*auto_map.*never runs"):
        open_checkpoint(resolve_source(str(directory)))
    assert not canary.exists()
    exec(payload)
    assert canary.exists(), "the payload works"


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
NATIVE = {
    "AutoConfig": "payload.LlamaConfig",
    "AutoModel": "payload.LlamaModel",
    "AutoModelForCausalLM": "org/repo--payload.LlamaForCausalLM",
}


@pytest.mark.torch
def test_the_code_of_a_native_family_is_not_needed_and_never_runs(
    hf_directory: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoConfig

    directory = hf_directory(**LLAMA, auto_map=NATIVE)
    canary = tmp_path / "canary"
    (directory / "payload.py").write_text(f"open({str(canary)!r}, 'w').close()")
    checkpoint = open_checkpoint(resolve_source(str(directory)))
    (note,) = checkpoint.notes
    assert "`auto_map` names is not run: the model is served as LlamaForCausalLM" in note
    checkpoint.write_tokenizer(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"tokenizer.json", "special_tokens.json"}
    with without_code(directory, checkpoint.hugging_face_config) as view:
        assert {path.name for path in view.iterdir()} == {"config.json", "model.safetensors"}
        assert "payload" not in (view / "config.json").read_text()
        assert AutoConfig.from_pretrained(view, trust_remote_code=True).architectures == ["LlamaForCausalLM"]
    assert not canary.exists()


@pytest.mark.parametrize(
    ("architectures", "auto_map"),
    [
        (["LlamaForCausalLM"], AUTO_MAP),
        (["LlamaForCausalLM"], {**NATIVE, "AutoModelForCausalLM": "payload.OtherForCausalLM"}),
        (["LlamaForCausalLM"], {**NATIVE, "AutoTokenizer": ["payload.LlamaTokenizer", None]}),
        (["LlamaForCausalLM"], {**NATIVE, "AutoModelForCausalLM": ["payload.LlamaForCausalLM"]}),
        (["LlamaForCausalLM"], ["payload.LlamaForCausalLM"]),
        (["LlamaForCausalLM"], "payload.LlamaForCausalLM"),
        (["OtherForCausalLM"], NATIVE),
        (["LlamaForCausalLM", "LlamaModel"], NATIVE),
        (None, NATIVE),
    ],
)
def test_code_that_may_differ_from_the_family_is_refused(
    hf_directory: Callable[..., Path], architectures: object, auto_map: object
) -> None:
    directory = hf_directory(**{**LLAMA, "architectures": architectures}, auto_map=auto_map)
    with pytest.raises(CheckpointError, match=r"config\.json.*auto_map.*never runs"):
        open_checkpoint(resolve_source(str(directory)))


@pytest.mark.parametrize("key", ["auto_map", "custom_pipelines", "_attn_implementation", "custom_generate"])
def test_no_copy_for_a_library_names_code(hf_directory: Callable[..., Path], key: str) -> None:
    config = {"a": [{key: "org/kernel"}], key: {"x": "payload.X"}, "hidden_size": 32}
    with without_code(hf_directory(), config) as view:
        assert json.loads((view / "config.json").read_text()) == {"a": [{}], "hidden_size": 32}


def test_auto_map_is_refused_before_anything_else_is_judged(hf_directory: Callable[..., Path]) -> None:
    directory = hf_directory(model_type="llama", auto_map=AUTO_MAP)
    (directory / "model.safetensors").write_bytes(b"not safetensors")
    (directory / "tokenizer.json").write_text("not JSON")
    with pytest.raises(CheckpointError, match="auto_map"):
        open_checkpoint(resolve_source(str(directory)))


class _Payload:
    """Writes a file when its pickle is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.canary,)


PICKLES = [
    "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin",
    "consolidated.00.pth",
    "model.pt",
    "model.pkl",
    "model.pickle",
    "epoch.ckpt",
    "MODEL.BIN",
]


@pytest.mark.parametrize("file_name", PICKLES)
def test_weights_only_as_pickles_are_refused_and_never_loaded(
    hf_directory: Callable[..., Path], tmp_path: Path, file_name: str
) -> None:
    directory = hf_directory()
    canary = tmp_path / "canary"
    weights = directory / file_name
    weights.write_bytes(pickle.dumps(_Payload(canary)))
    # It is ignored if there are safetensors too.
    checkpoint = open_checkpoint(resolve_source(str(directory)))
    checkpoint.read("model.norm.weight")
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"only as pickles \({file_name}\).*safe_serialization"):
        open_checkpoint(resolve_source(str(directory)))
    assert not canary.exists()
    pickle.loads(weights.read_bytes())
    assert canary.exists(), "the payload works"


@pytest.mark.parametrize(
    "pickled", ["pytorch_model.bin", "model.safetensors", "model-00001-of-00001.safetensors"]
)
def test_a_pickle_is_not_loaded_where_the_index_or_its_name_says_safetensors(
    hf_directory: Callable[..., Path], tmp_path: Path, pickled: str
) -> None:
    directory = hf_directory()
    canary = tmp_path / "canary"
    (directory / pickled).write_bytes(pickle.dumps(_Payload(canary)))
    index = {"weight_map": {"model.norm.weight": pickled}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{pickled} is truncated or not a safetensors file"):
        open_checkpoint(resolve_source(str(directory)))
    assert not canary.exists()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", '{"a": ' * 50_000])
def test_a_file_that_cannot_be_judged_is_refused(hf_directory: Callable[..., Path], text: str) -> None:
    directory = hf_directory()
    (directory / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        open_checkpoint(resolve_source(str(directory)))
