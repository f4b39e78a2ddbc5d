"""A Hugging Face directory with safetensors as a checkpoint.

Runs in the build half, on any thread. Weights stay memory-mapped until `read`. Never opens a pickle;
imports neither transformers nor torch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors needs
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vinfer.checkpoint.family import ModelFacts, TensorNames
from vinfer.checkpoint.generation import GenerationFacts, read_generation_facts
from vinfer.checkpoint.json_file import read_json_object, read_optional_json_object
from vinfer.checkpoint.layout import Shape, Shapes, check_layout
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope import RopeFacts
from vinfer.checkpoint.safety import refuse_unsafe
from vinfer.checkpoint.tokenizer_files import TokenizerFiles, read_tokenizer_files
from vinfer.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_DTYPES = ("F32", "F16", "BF16")
_ROWS_COMPARED = 4096


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in an open safetensors file, under the name that it has there."""

    file: Any
    name: str

    def lazy(self) -> Any:
        """Return what can be sliced without reading the rest."""
        return self.file.get_slice(self.name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HfCheckpoint:
    """See `vinfer.checkpoint.checkpoint.Checkpoint`."""

    model_type: str
    config: dict[str, object]
    ropes: dict[str, RopeFacts]
    facts: ModelFacts
    generation: GenerationFacts
    tokenizer: TokenizerFiles
    shapes: dict[str, Shape]
    shards: dict[str, Stored]

    def tensor_names(self) -> list[str]:
        return list(self.shapes)

    def tensor_shape(self, name: str) -> Shape:
        return self.shapes[name]

    def read(self, name: str) -> npt.NDArray[Any]:
        stored = self.shards[name]
        array: npt.NDArray[Any] = stored.file.get_tensor(stored.name)
        return array

    def write_tokenizer(self, directory: Path) -> None:
        self.tokenizer.write(directory)


def open_hf_directory(directory: Path) -> HfCheckpoint:
    """Open a directory with config.json, tokenizer.json and safetensors.

    Raises:
        CheckpointError: unsafe, incomplete, malformed, or of a kind vinfer does not serve.
    """
    refuse_unsafe(directory)
    raw_config = read_json_object(directory / "config.json")
    normalised = normalise(raw_config, str(directory / "config.json"))
    tokenizer = read_tokenizer_files(directory)
    names = normalised.names
    shards = _in_our_names(_open_shards(directory), normalised.shapes, names)
    found = {name: _shape(stored, directory) for name, stored in shards.items()}
    if normalised.facts.is_tied and names.head in found:
        _refuse_contradicted_tie(directory, names, shards, found)
        del found[names.head]
    check_layout(normalised.shapes, found, str(directory))
    return HfCheckpoint(
        model_type=normalised.model_type,
        config=normalised.config,
        ropes=normalised.ropes,
        facts=normalised.facts,
        generation=read_generation_facts(
            read_optional_json_object(directory / "generation_config.json"),
            raw_config,
            tokenizer_eos_id=tokenizer.eos_token_id(),
            vocab_size=normalised.facts.vocab_size,
            where=str(directory),
        ),
        tokenizer=tokenizer,
        shapes={name: found[name] for name in normalised.shapes},
        shards=shards,
    )


def _open_shards(directory: Path) -> dict[str, Any]:
    """Map the name of every stored tensor to its open file."""
    index_path = directory / _INDEX
    if not index_path.is_file():
        if not (directory / _SINGLE).is_file():
            others = sorted(path.name for path in directory.glob("*.safetensors"))
            raise CheckpointError(
                f"{directory} has neither {_SINGLE} nor {_INDEX} (safetensors found: "
                f"{', '.join(others) or 'none'}): vinfer reads no pickles "
                "(*.bin, *.pt); save the model with safe_serialization=True"
            )
        single = _open(directory / _SINGLE)
        return {name: single for name in single.keys()}  # noqa: SIM118
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index_path} has no weight_map object: download the checkpoint again")
    files: dict[str, Any] = {}
    shards: dict[str, Any] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(
                f"{index_path}: {name} lies in {file_name!r}, which is not a file name here"
            )
        if file_name not in files:
            files[file_name] = _open(directory / file_name)
        shards[name] = files[file_name]
    for file_name, shard in files.items():
        stored = set(shard.keys())
        lost = [name for name in weight_map if weight_map[name] == file_name and name not in stored]
        if lost:
            raise CheckpointError(
                f"{directory / file_name} lacks {lost[0]}, which {_INDEX} places there: download it again"
            )
    return shards


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist: the download is incomplete; fetch the checkpoint again"
        )
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}): download it again"
        ) from error


def _in_our_names(shards: dict[str, Any], expected: Shapes, names: TensorNames) -> dict[str, Stored]:
    """Leave out the family's buffers, and add its prefix where only that makes an expected name."""
    found = {}
    for name, file in shards.items():
        if name.endswith(names.buffers) and name not in expected:
            continue
        prefixed = names.optional_prefix + name
        found[prefixed if name not in expected and prefixed in expected else name] = Stored(file, name)
    return found


def _shape(stored: Stored, directory: Path) -> Shape:
    tensor, name = stored.lazy(), stored.name
    if tensor.get_dtype() not in _DTYPES:
        raise CheckpointError(
            f"{directory}: {name} is stored as {tensor.get_dtype()}; served are {', '.join(_DTYPES)}: "
            "take unquantised weights"
        )
    return tuple(tensor.get_shape())


def _refuse_contradicted_tie(
    directory: Path, names: TensorNames, shards: dict[str, Stored], found: dict[str, Shape]
) -> None:
    """Refuse a separate head in a model that says it has none: transformers 4 and 5 disagree on it."""
    if names.embedding not in found:
        return  # the layout check says so better
    embedding, head = shards[names.embedding].lazy(), shards[names.head].lazy()
    num_rows = found[names.embedding][0]
    spans = [slice(row, min(row + _ROWS_COMPARED, num_rows)) for row in range(0, num_rows, _ROWS_COMPARED)]
    is_equal = found[names.embedding] == found[names.head] and all(
        np.array_equal(embedding[span], head[span]) for span in spans
    )
    if not is_equal:
        raise CheckpointError(
            f"{directory}: config.json ties the embeddings, but {names.head} differs from "
            f"{names.embedding}: set tie_word_embeddings to false in config.json if the head was "
            "trained, or delete the tensor if it is stale"
        )
