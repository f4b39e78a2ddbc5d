"""Refuses checkpoints that would run code when loaded.

Runs in the build half before anything else reads the directory: EasyDeL tells transformers to trust
remote code, whatever the caller says, and pickles execute on load. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from vinfer.checkpoint.families import FAMILIES
from vinfer.checkpoint.json_file import read_json_object
from vinfer.errors import CheckpointError

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})

# Keys with which a config makes transformers import something, from the checkpoint or from the hub.
_CODE_KEYS = frozenset(
    {
        "_attn_implementation",
        "_experts_implementation",
        "attn_implementation",
        "auto_map",
        "custom_generate",
        "custom_pipelines",
    }
)

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


def refuse_unsafe(directory: Path) -> list[str]:
    """Refuse a Hugging Face directory that needs its own code or holds only pickled weights.

    Pickles next to safetensors are fine: they are never opened. So is the code that a model was published
    with before its family was part of transformers: it is never run.

    Returns:
        A note, if the checkpoint names code that is not needed.

    Raises:
        CheckpointError: `auto_map` at any depth of a configuration file, weights only as pickles, or
            a configuration file that cannot be parsed and therefore cannot be checked.
    """
    notes = []
    for file_name in CODE_NAMING_FILES:
        path = directory / file_name
        if not path.is_file():
            continue
        config = read_json_object(path)
        if file_name == "config.json" and config.get("auto_map") and _is_native(config):
            notes.append(
                f"{path}: the Python code that `auto_map` names is not run: the model is served as "
                f"{FAMILIES[str(config['model_type'])].architecture}, which vinfer implements"
            )
            config = {key: value for key, value in config.items() if key != "auto_map"}
        if place := _find_auto_map(config):
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
    return notes


@contextlib.contextmanager
def without_code(directory: Path, config: Mapping[str, object]) -> Iterator[Path]:
    """Yield a directory with the same weights and a config that names no code, for a library to load.

    Args:
        directory: a checkpoint that `refuse_unsafe` has accepted.
        config: its config.json.
    """
    with tempfile.TemporaryDirectory(prefix="vinfer-") as name:
        view = Path(name)
        for path in directory.iterdir():
            if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
                (view / path.name).symlink_to(path.resolve())
        (view / "config.json").write_text(json.dumps(_cleaned(config)), encoding="utf-8")
        yield view


def _cleaned(value: object) -> object:
    """Return JSON without the keys that name code, at any depth."""
    if isinstance(value, dict):
        return {key: _cleaned(child) for key, child in value.items() if key not in _CODE_KEYS}
    return [_cleaned(child) for child in value] if isinstance(value, list) else value


def _is_native(config: Mapping[str, object]) -> bool:
    """Return whether `auto_map` names nothing but the classes of a family that vinfer implements."""
    family, code = FAMILIES.get(str(config.get("model_type"))), config.get("auto_map")
    if family is None or not isinstance(code, dict):
        return False
    if config.get("architectures") not in ([family.architecture], [family.headless]):
        return False
    base = re.sub(r"For[A-Z]\w*$|LMHeadModel$", "", family.architecture)
    expected = re.compile(rf"[\w./-]+\.{base}(Config|Model|PreTrainedModel|LMHeadModel|For[A-Z]\w*)")
    return all(
        re.fullmatch(r"AutoConfig|AutoModel\w*", key) and isinstance(name, str) and expected.fullmatch(name)
        for key, name in code.items()
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
