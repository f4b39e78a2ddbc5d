"""Refuses checkpoints that would run code when loaded.

Runs in the build half before anything else reads the directory: EasyDeL tells transformers to trust
remote code, whatever the caller says, and pickles execute on load. Knows nothing of models.
"""

from __future__ import annotations

from pathlib import Path

from vinfer.checkpoint.json_file import read_json_object
from vinfer.errors import CheckpointError

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})

# Every JSON file from which transformers takes the name of a class to import.
CODE_NAMING_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
)


def refuse_unsafe(directory: Path) -> None:
    """Refuse a Hugging Face directory that names its own code or holds only pickled weights.

    Pickles next to safetensors are fine: they are never opened.

    Raises:
        CheckpointError: `auto_map` at any depth of a configuration file, weights only as pickles, or
            a configuration file that cannot be parsed and therefore cannot be checked.
    """
    for file_name in CODE_NAMING_FILES:
        path = directory / file_name
        if path.is_file() and (place := _find_auto_map(read_json_object(path))):
            raise CheckpointError(
                f"{path}: `{place}` names Python code shipped with the checkpoint, which vinfer never runs: "
                "use a checkpoint of a family that transformers itself implements, or remove `auto_map` from "
                "the file if this one is"
            )
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix.lower() in PICKLE_SUFFIXES)
    if pickles and not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{directory} has weights only as pickles ({', '.join(pickles[:3])}), which run code when "
            "loaded: convert them with `save_pretrained(..., safe_serialization=True)` on a machine you can "
            "lose, or choose a revision with *.safetensors"
        )


def _find_auto_map(config: dict[str, object]) -> str | None:
    """Return the path of the first non-empty `auto_map`; iterative, because the file determines the depth."""
    pending: list[tuple[str, object]] = [("", config)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, dict):
            if value.get("auto_map"):
                return f"{place}auto_map"
            pending += [(f"{place}{key}.", child) for key, child in value.items()]
        elif isinstance(value, list):
            pending += [(f"{place}{index}.", child) for index, child in enumerate(value)]
    return None
