"""One server of the small real model for all tests of this folder; it must also exit cleanly."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import CONFIG, ServerProcess, bundle_directory, started

from vinfer.text.tokenizer import Tokenizer


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All here need a bundle, be it that of the server."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.bundles())


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """`configs/smollm2.yaml` as shipped; builds its bundle if that is not in the cache."""
    with started(CONFIG) as server:
        server.wait_until_ready()
        yield server
        assert server.terminate() == 0, server.log


@pytest.fixture(scope="session")
def bundle(server: ServerProcess) -> Path:
    bundle = bundle_directory(server)
    # Remove older bundles: each change of the build half would add half a gigabyte.
    for older in bundle.parent.iterdir():
        if older.is_dir() and older != bundle and not older.name.startswith("."):
            shutil.rmtree(older, ignore_errors=True)
    return bundle


@pytest.fixture(scope="session")
def tokenizer(bundle: Path) -> Tokenizer:
    return Tokenizer.load(bundle / "tokenizer")


@pytest.fixture(scope="session")
def text_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of a long English text that prompts are cut from."""
    license_text = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = list(tokenizer.encode(license_text, add_special_tokens=False))
    # Long enough for every prompt that a test cuts from it.
    assert len(ids) > 2200
    return ids
