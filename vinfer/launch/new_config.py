"""`vinfer config init`: writes a commented YAML file for one model and the devices of this machine."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from vinfer.config import load_config
from vinfer.errors import ConfigError
from vinfer.launch.devices import Target
from vinfer.launch.terminal import size_words


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a config needs from its user."""

    source: str
    name: str
    port: int


def ask(
    question: Callable[[str], str] | None, *, source: str | None, name: str | None, port: int | None
) -> Answers:
    """Return the answers: those that are given, and for the others those of a user or the defaults.

    Args:
        question: shows a question and returns a line; None if nobody can be asked.

    Raises:
        ConfigError: nobody says where the model is, or a port is no number.
    """
    if source is None and question is not None:
        source = question("Model (hub id, directory or .gguf file): ").strip()
    if not source:
        raise ConfigError("--source is missing: give a hub id, a directory or a .gguf file")
    default_name = _name_of(source)
    if name is None and question is not None:
        name = question(f"Name in the API [{default_name}]: ").strip()
    if port is None:
        text = question("Port [8000]: ").strip() if question is not None else ""
        if text and not (text.isascii() and text.isdigit()):
            raise ConfigError(f"port is {text[:20]}: give a number, such as 8000")
        port = int(text or 8000)
    return Answers(source=source, name=name or default_name, port=port)


def write_config(path: Path, answers: Answers, target: Target, *, replaces: bool) -> None:
    """Write the YAML file of a model, once `vinfer config check` would accept it.

    Raises:
        ConfigError: the file exists, cannot be written, or would have a wrong value.
    """
    if path.exists() and not replaces:
        raise ConfigError(f"{path} exists: choose another file, or pass --force to replace it")
    text = config_text(answers, target)
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / path.name
        draft.write_text(text, encoding="utf-8")
        try:
            load_config(draft, environ={"HOME": scratch})
        except ConfigError as error:
            raise ConfigError(error.message.replace(f"{scratch}/", "")) from None
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): choose another file") from None


def config_text(answers: Answers, target: Target) -> str:
    """Return the YAML; every text in it is quoted as JSON, which is YAML too."""
    on_cpu = target.platform == "cpu"
    source = answers.source
    # Relative paths in a config start at its own directory, those of the user at the working directory.
    if not source.startswith("package:") and Path(source).expanduser().exists():
        source = os.path.abspath(Path(source).expanduser())
    devices = f"{target.num_devices} {target.platform} device{'s' if target.num_devices > 1 else ''}"
    if target.memory_bytes is not None:
        devices += f" with {size_words(target.memory_bytes)}{' in all' if on_cpu else ' each'}"
    dtype, why = ("float32", "a CPU computes in it") if on_cpu else ("bfloat16", "half the memory of float32")
    slots = 16 if on_cpu else 64
    return f"""\
# Made by vinfer config init for {devices}.
#
#     vinfer plan FILE     what fits, before anything is built
#     vinfer serve FILE    build what is missing, then serve
#
# All keys: vinfer config reference

server:
  host: 127.0.0.1 # any other address needs api_keys_file
  port: {answers.port}
  # api_keys_file: keys.txt # one key per line; readable by you alone

models:
  - name: {json.dumps(answers.name)} # model id in the API
    source: {json.dumps(source)}
    dtype: {dtype} # {why}
    mesh: {{tp: -1}} # split over all devices
    num_slots: {slots} # requests decoded together
    # max_model_len: 4096 # prompt plus answer; by default what the checkpoint supports and memory holds
    # kv_cache: {{memory_fraction: 0.5}} # by default what fits
    # sampling: {{max_tokens: 512, temperature: 0.7}} # by default those of the checkpoint
"""


def _name_of(source: str) -> str:
    """Return the last part of a source as a name: its letters, digits, dots and dashes."""
    last = source.rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return re.sub(r"[^a-z0-9.-]+", "-", last.lower()).strip("-.")[:64] or "model"
