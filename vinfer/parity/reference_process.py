"""The parent's side of the reference child: checks whether it can run here, starts it, and asks it.

Imports neither torch, transformers nor JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vinfer.checkpoint.checkpoint import Checkpoint, num_parameters
from vinfer.checkpoint.source import ResolvedSource
from vinfer.child_process import Child, how_it_ended, running_child
from vinfer.errors import ReferenceUnavailableError
from vinfer.parity.figures import Logits

_INSTALL = {
    "torch": "pip install torch (its CPU build is enough)",
    "transformers": "pip install 'vinfer[build]'",
}
_BASE_BYTES = 1 << 30
"""Memory of torch and transformers themselves, activations, and logits being written to a file."""
_SCORE_COPIES = 3
"""Attention scores, their softmax in float32, and the added mask, for one layer at a time."""


def require_packages() -> None:
    """Check that the packages of the reference are installed; import nothing.

    Raises:
        ReferenceUnavailableError: a package is missing; the message says what to install.
    """
    for name, command in _INSTALL.items():
        if importlib.util.find_spec(name) is None:
            raise ReferenceUnavailableError(
                f"the check against transformers needs {name}, which is not installed: {command}"
            )


def require_memory(checkpoint: Checkpoint, *, max_sequence_len: int) -> None:
    """Check that transformers' float32 model fits into the memory that is free now.

    Args:
        max_sequence_len: tokens of the longest prompt and its answer.

    Raises:
        ReferenceUnavailableError: it does not fit; the message names both numbers.
    """
    scores = checkpoint.facts.num_attention_heads * max_sequence_len**2
    needed = 4 * (num_parameters(checkpoint) + _SCORE_COPIES * scores) + _BASE_BYTES
    available = available_memory_bytes()
    if available is not None and needed > available:
        raise ReferenceUnavailableError(
            f"the check against transformers needs {needed / 2**30:.1f} GiB of memory for the float32 model; "
            f"{available / 2**30:.1f} GiB are available: run vinfer verify on a larger machine"
        )


class ReferenceProcess:
    """A running reference; calling it with a prompt and its answer returns the logits of the answer."""

    def __init__(self, child: Child, log: Path, directory: Path) -> None:
        self._child = child
        self._log = log
        self._file = directory / "logits.npy"
        self.versions: dict[str, str] = {}

    def load(self, source: ResolvedSource) -> None:
        """Make the child load a source.

        Raises:
            CheckpointError, ReferenceUnavailableError: as reported by the child.
        """
        self.versions = self._ask({**dataclasses.asdict(source), "path": str(source.path)})["versions"]

    def __call__(self, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> Logits:
        """Return float32 [len(answer_ids), vocab].

        Raises:
            ReferenceUnavailableError: the child failed.
        """
        self._ask({"prompt_ids": [*prompt_ids], "answer_ids": [*answer_ids], "file": str(self._file)})
        logits: Logits = np.load(self._file, allow_pickle=False)
        return logits

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        self._child.send(message)
        answer = self._child.receive()
        if answer is None:
            how = self._child.end() or how_it_ended(0)
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise ReferenceUnavailableError(f"the reference ended with {how}: {said[-1] if said else ''}")
        return answer


@contextlib.contextmanager
def reference_process(source: ResolvedSource) -> Iterator[ReferenceProcess]:
    """Run transformers on a source in a child process, which has ended when the context exits.

    Raises:
        CheckpointError: the child refuses the checkpoint.
        ReferenceUnavailableError: a package is missing, or the child cannot load the checkpoint.
    """
    require_packages()
    with tempfile.TemporaryDirectory(prefix="vinfer-reference-") as scratch:
        log = Path(scratch) / "log"
        with running_child(
            "vinfer.parity.reference",
            environment=_environment(),
            log=log,
            failure=ReferenceUnavailableError,
        ) as child:
            reference = ReferenceProcess(child, log, Path(scratch))
            reference.load(source)
            yield reference


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        # The accelerator belongs to the engine, and all files are already local.
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int | None:
    """Return the memory free without swapping, or less if the container's limit is lower; None if unknown."""
    amounts = [amount for amount in (_machine_bytes(), _container_bytes()) if amount is not None]
    return min(amounts, default=None)


def _machine_bytes() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def _container_bytes() -> int | None:
    """Return the free memory of this container's cgroup v2; the page cache counts as free."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        statistics = (_CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return None
    cached = sum(int(line.split()[1]) for line in statistics if line.startswith("inactive_file "))
    return max(limit - used + cached, 0)
