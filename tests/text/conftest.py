"""Loads each kind of small tokenizer once."""

from __future__ import annotations

import pytest
from small_tokenizers import KINDS, write_tokenizer

from vinfer.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizers_of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: Tokenizer.load(write_tokenizer(root / name, kind())) for name, kind in KINDS.items()}
