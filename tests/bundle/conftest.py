"""A written bundle directory for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_bundle import PROGRAM, WEIGHTS, make_manifest

from vinfer.bundle.directory import (
    write_manifest,
)
from vinfer.bundle.verification import hash_files


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A small bundle on disk."""
    path = tmp_path / "tiny"
    for name, content in ((PROGRAM, b"program"), (WEIGHTS, b"weights"), ("tokenizer/tokenizer.json", b"{}")):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    write_manifest(path, make_manifest(hash_files(path)))
    return path
