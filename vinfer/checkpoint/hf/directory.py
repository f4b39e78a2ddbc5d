"""Opens a Hugging Face directory with safetensors as a checkpoint.

Runs in the build half, on any thread. Opening reads headers; `read` reads one tensor. Never opens a pickle;
imports neither transformers nor torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.family import ModelFacts, TensorNames
from vinfer.checkpoint.generation import GenerationFacts, read_generation_facts
from vinfer.checkpoint.hf.fp8 import FP8_DTYPES, dequantise, split_scales
from vinfer.checkpoint.hf.mxfp4 import Mxfp4Tensor, join_blocks
from vinfer.checkpoint.hf.safetensors_file import DTYPES, StoredTensor, stored_tensors
from vinfer.checkpoint.json_file import read_json_object, read_optional_json_object
from vinfer.checkpoint.layout import Shape, Shapes, check_layout
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.quantization import Fp8Scheme, is_mxfp4, read_fp8_scheme
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.safety import refuse_unsafe
from vinfer.checkpoint.tokenizer_files import TokenizerFiles, read_tokenizer_files
from vinfer.checkpoint.vision import VisionFacts
from vinfer.errors import CheckpointError
from vinfer.image_processing import ImageProcessing

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ROWS_COMPARED = 4096


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HfCheckpoint:
    """See `vinfer.checkpoint.checkpoint.Checkpoint`."""

    model_type: str
    config: dict[str, object]
    hugging_face_config: dict[str, object]
    ropes: dict[str, RopeFacts]
    facts: ModelFacts
    generation: GenerationFacts
    tokenizer: TokenizerFiles
    tensors: dict[str, StoredTensor | Mxfp4Tensor]
    """By name, in file order, shard by shard."""
    scheme: Fp8Scheme | None
    scales: dict[str, StoredTensor]
    """By the name of the 8-bit weight."""
    notes: tuple[str, ...] = ()
    vision: VisionFacts | None = None
    image_processing: ImageProcessing | None = None

    def tensor_names(self) -> list[str]:
        return list(self.tensors)

    def tensor_shape(self, name: str) -> Shape:
        return self.tensors[name].shape

    def read(self, name: str) -> npt.NDArray[Any]:
        values = self.tensors[name].read()
        if name not in self.scales:
            return values
        assert self.scheme is not None
        return dequantise(values, self.scales[name].read(), self.scheme.block)

    def write_tokenizer(self, directory: Path) -> None:
        self.tokenizer.write(directory)


def open_hf_directory(directory: Path) -> HfCheckpoint:
    """Open a directory with config.json, tokenizer.json and safetensors.

    Raises:
        CheckpointError: unsafe, incomplete, malformed, or of an unsupported kind.
    """
    notes = refuse_unsafe(directory)
    raw_config = read_json_object(directory / "config.json")
    where = str(directory / "config.json")
    normalised = normalise(raw_config, where)
    if not normalised.facts.has_head:
        raw_config = {**raw_config, "tie_word_embeddings": True}
    tokenizer = read_tokenizer_files(directory, vocab_size=normalised.facts.vocab_size)
    processing = None
    if normalised.vision is not None:
        processing = normalised.vision.read_processing(directory)
        _refuse_other_size(processing, normalised.vision, directory)
        tokenizer = tokenizer.with_placeholder(
            processing.placeholder, image_token_id=normalised.vision.image_token_id, where=str(directory)
        )
    keys = ConfigKeys(raw_config, where)
    is_packed = is_mxfp4(keys)
    scheme = None if is_packed else read_fp8_scheme(keys)
    names = normalised.names
    ours = _in_our_names(_stored_tensors(directory), normalised.shapes, names)
    stored, scales = split_scales(ours, scheme, str(directory))
    tensors: dict[str, StoredTensor | Mxfp4Tensor] = {**stored}
    if is_packed:
        tensors = join_blocks(stored, str(directory))
    _check_dtypes(tensors, directory)
    if normalised.facts.is_tied and names.head in tensors:
        _refuse_contradicted_tie(directory, names, stored)
        del tensors[names.head]
    check_layout(normalised.shapes, {name: tensor.shape for name, tensor in tensors.items()}, str(directory))
    generation = read_generation_facts(
        read_optional_json_object(directory / "generation_config.json"),
        raw_config,
        tokenizer_eos_id=tokenizer.eos_token_id(),
        vocab_size=normalised.facts.vocab_size,
        where=str(directory),
    )
    tokenizer.refuse_unknown_end(generation.eos_token_ids, str(directory))
    return HfCheckpoint(
        model_type=normalised.model_type,
        config=normalised.config,
        hugging_face_config=raw_config,
        ropes=normalised.ropes,
        facts=normalised.facts,
        generation=generation,
        tokenizer=tokenizer,
        tensors=tensors,
        scheme=scheme,
        scales=scales,
        notes=(*notes, *generation.notes),
        vision=normalised.vision,
        image_processing=processing,
    )


def _refuse_other_size(processing: ImageProcessing, vision: VisionFacts, directory: Path) -> None:
    if vision.image_shape is None:
        return
    _, height, width = vision.image_shape
    if processing.output_size not in (None, (height, width)):
        raise CheckpointError(
            f"{directory}: the image processor makes images of size {processing.output_size}, but the tower "
            f"of config.json takes size {(height, width)} (height, width): they do not belong together"
        )


def _stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """List the tensors of all shards, in order."""
    tensors: dict[str, StoredTensor] = {}
    for path, wanted in _shards(directory).items():
        stored = stored_tensors(path)
        lost = [name for name in wanted or () if name not in stored]
        if lost:
            raise CheckpointError(f"{path} lacks {lost[0]}, which {_INDEX} says is there: download it again")
        tensors |= {name: tensor for name, tensor in stored.items() if wanted is None or name in wanted}
    return tensors


def _shards(directory: Path) -> dict[Path, set[str] | None]:
    """List the files, each with the names of the tensors to take from it; None means all."""
    index_path = directory / _INDEX
    if not index_path.is_file():
        if not (directory / _SINGLE).is_file():
            others = sorted(path.name for path in directory.glob("*.safetensors"))
            raise CheckpointError(
                f"{directory} has neither {_SINGLE} nor {_INDEX} (safetensors found: "
                f"{', '.join(others) or 'none'}): vinfer does not read pickles "
                "(*.bin, *.pt); save the model with safe_serialization=True"
            )
        return {directory / _SINGLE: None}
    if (directory / _SINGLE).is_file() and _is_stale(index_path):
        return {directory / _SINGLE: None}
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index_path} has no weight_map object: download the checkpoint again")
    wanted: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise CheckpointError(f"{index_path}: {name} is in {file_name!r}, which is not a plain file name")
        wanted.setdefault(file_name, set()).add(name)
    return {directory / file_name: wanted[file_name] for file_name in sorted(wanted)}


def _is_stale(index_path: Path) -> bool:
    """Return whether an index describes other files than those beside it, or only the file beside it."""
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        return True
    names = {name for name in weight_map.values() if isinstance(name, str)}
    return names <= {_SINGLE} or not all((index_path.parent / Path(name).name).is_file() for name in names)


def _in_our_names(
    stored: Mapping[str, StoredTensor], expected: Shapes, names: TensorNames
) -> dict[str, StoredTensor]:
    """Drop the family's buffers; add its prefix to a name if only that matches an expected name."""
    found = {}
    for name, tensor in stored.items():
        if name.endswith(names.buffers) and name not in expected:
            continue
        ours = names.our_name(name)
        prefixed = names.optional_prefix + ours
        found[prefixed if ours not in expected and prefixed in expected else ours] = tensor
    return found


def _check_dtypes(tensors: Mapping[str, StoredTensor | Mxfp4Tensor], directory: Path) -> None:
    whole = [dtype for dtype in DTYPES if dtype != "U8"]
    for name, tensor in tensors.items():
        if tensor.dtype not in whole:
            served = ", ".join(dtype for dtype in whole if dtype not in FP8_DTYPES)
            raise CheckpointError(
                f"{directory}: {name} is stored as {tensor.dtype}; supported: {served}: "
                "use unquantized weights"
            )


def _refuse_contradicted_tie(
    directory: Path, names: TensorNames, tensors: Mapping[str, StoredTensor]
) -> None:
    """Reject a separate head in a model declared as tied, because transformers 4 and 5 disagree about it."""
    if names.embedding not in tensors:
        return  # the layout check reports this more clearly
    embedding, head = tensors[names.embedding], tensors[names.head]
    is_equal = (
        embedding.shape == head.shape
        # For 8-bit floats, equal weights also need equal scales.
        and FP8_DTYPES.isdisjoint((embedding.dtype, head.dtype))
        and all(
            np.array_equal(embedding.read_rows(row, _ROWS_COMPARED), head.read_rows(row, _ROWS_COMPARED))
            for row in range(0, embedding.shape[0], _ROWS_COMPARED)
        )
    )
    if not is_equal:
        raise CheckpointError(
            f"{directory}: config.json ties the embeddings, but {names.head} differs from "
            f"{names.embedding}: set tie_word_embeddings to false in config.json if the head was "
            "trained, or delete the tensor if it is stale"
        )
