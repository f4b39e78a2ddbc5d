"""One server of the small real model for all tests of this folder; it must end well too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import CONFIG, ServerProcess, bundle_directory, started

from vinfer.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """`configs/smollm2.yaml` as it is shipped; builds its bundle where that is not in the cache."""
    with started(CONFIG) as server:
        server.wait_until_ready()
        yield server
        assert server.terminate() == 0, server.log


@pytest.fixture(scope="session")
def bundle(server: ServerProcess) -> Path:
    return bundle_directory(server)


@pytest.fixture(scope="session")
def tokenizer(bundle: Path) -> Tokenizer:
    return Tokenizer.load(bundle / "tokenizer")


@pytest.fixture(scope="session")
def text_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of a long English text, to cut prompts from."""
    license_text = (Path(__file__).parents[2] / "LICENSE").read_text()
    return list(tokenizer.encode(license_text, add_special_tokens=False))
