"""A GGUF file as a checkpoint: its metadata and tensors in Hugging Face terms.

Runs in the build half, on any thread. `config` and `names` translate; then the same rules apply as for
config.json (`normalise`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vinfer.checkpoint.config_keys import ConfigKeys
from vinfer.checkpoint.family import ONE_ROPE, ModelFacts
from vinfer.checkpoint.generation import GenerationFacts, read_generation_facts
from vinfer.checkpoint.gguf.config import hugging_face_config
from vinfer.checkpoint.gguf.file import GgufFile, open_gguf
from vinfer.checkpoint.gguf.names import ROPE_FREQUENCIES, TENSOR_RULES, TensorRules
from vinfer.checkpoint.gguf.tokenizer import build_tokenizer_files
from vinfer.checkpoint.layout import Shape, check_layout
from vinfer.checkpoint.normalise import normalise
from vinfer.checkpoint.rope.facts import RopeFacts
from vinfer.checkpoint.tokenizer_files import TokenizerFiles
from vinfer.errors import CheckpointError

_ENDS_OF_TURN = {"gemma2": "<end_of_turn>", "gemma3": "<end_of_turn>"}
"""Extra end token by architecture, whatever the file says: Gemma's files name only `<eos>`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GgufCheckpoint:
    """See `vinfer.checkpoint.checkpoint.Checkpoint`."""

    model_type: str
    config: dict[str, object]
    hugging_face_config: dict[str, object]
    ropes: dict[str, RopeFacts]
    facts: ModelFacts
    generation: GenerationFacts
    tokenizer: TokenizerFiles
    file: GgufFile
    stored_names: dict[str, str]
    """Hugging Face name -> name in the file."""
    rules: TensorRules
    # llama.cpp keeps vision towers in separate files.
    vision: None = None
    image_processing: None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return self.generation.notes

    def tensor_names(self) -> list[str]:
        return list(self.stored_names)

    def tensor_shape(self, name: str) -> Shape:
        return self.file.tensors[self.stored_names[name]].shape

    def read(self, name: str) -> npt.NDArray[Any]:
        weight = self.file.read(self.stored_names[name])
        return self.rules.restore(name, weight, ConfigKeys(self.config, "config"))

    def write_tokenizer(self, directory: Path) -> None:
        self.tokenizer.write(directory)


def open_gguf_checkpoint(path: Path) -> GgufCheckpoint:
    """Open a GGUF file of a supported architecture.

    Raises:
        CheckpointError: malformed, incomplete, or of an unsupported kind.
    """
    file = open_gguf(path)
    keys = ConfigKeys(file.metadata, str(path))
    config = hugging_face_config(keys, {name: tensor.shape for name, tensor in file.tensors.items()})
    normalised = normalise(config, keys.where)
    rules = TENSOR_RULES[keys.string("general.architecture")]
    ropes, names = normalised.ropes, list(file.tensors)
    if rules.takes_rope_frequencies and ROPE_FREQUENCIES in names:
        ropes = {ONE_ROPE: _with_divisors(ropes[ONE_ROPE], file)}
        names.remove(ROPE_FREQUENCIES)
    stored_names = {rules.hugging_face_name(name, keys.where): name for name in names}
    check_layout(
        normalised.shapes,
        {name: file.tensors[stored].shape for name, stored in stored_names.items()},
        keys.where,
    )
    return GgufCheckpoint(
        model_type=normalised.model_type,
        config=normalised.config,
        hugging_face_config=config,
        ropes=ropes,
        facts=normalised.facts,
        generation=_generation(keys, vocab_size=normalised.facts.vocab_size),
        tokenizer=build_tokenizer_files(file.metadata, keys.where),
        file=file,
        stored_names={name: stored_names[name] for name in normalised.shapes},
        rules=rules,
    )


def _with_divisors(rope: RopeFacts, file: GgufFile) -> RopeFacts:
    """Apply `rope_freqs.weight`, in which llama.cpp stores precomputed llama3 scaling."""
    divisors = file.read(ROPE_FREQUENCIES)
    if divisors.shape != (rope.rotary_dim // 2,) or not (
        np.isfinite(divisors).all() and (divisors > 0).all()
    ):
        raise CheckpointError(
            f"{file.path}: {ROPE_FREQUENCIES} must hold {rope.rotary_dim // 2} finite positive numbers, "
            f"but has shape {list(divisors.shape)}: the file is corrupt"
        )
    return dataclasses.replace(rope, frequency_divisors=tuple(divisors.tolist()))


def _generation(keys: ConfigKeys, vocab_size: int) -> GenerationFacts:
    ends = [keys.values.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    end_of_turn = _ENDS_OF_TURN.get(keys.string("general.architecture"))
    tokens = keys.values.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and end_of_turn in tokens:
        ends.append(tokens.index(end_of_turn))
    return read_generation_facts(
        {},
        {
            "eos_token_id": [id_ for id_ in ends if id_ is not None],
            "bos_token_id": keys.values.get("tokenizer.ggml.bos_token_id"),
            "pad_token_id": keys.values.get("tokenizer.ggml.padding_token_id"),
        },
        tokenizer_eos_id=None,
        vocab_size=vocab_size,
        where=keys.where,
    )
