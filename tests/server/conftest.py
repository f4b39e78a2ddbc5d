"""Servers with a fake engine; the shared one is reset between tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine, byte_tokenizer, served_model
from running_server import RunningServer, Start, run

from vinfer.config import ServerConfig
from vinfer.server.model_table import ModelTable, PrefixCache
from vinfer.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def start(tokenizer: Tokenizer) -> Start:
    """Start a separate server with settings other than the defaults."""

    def start_server(
        *,
        max_model_len: int = 128,
        prefix_cache: PrefixCache = "per_key",
        speculates: bool = False,
        **settings: Any,
    ) -> Any:
        engine = FakeEngine(max_model_len=max_model_len)
        models = ModelTable(["fake"])
        models.serve(served_model(engine, tokenizer, prefix_cache=prefix_cache, speculates=speculates))
        return run(ServerConfig(port=0, **settings), models, engine)

    return start_server


@pytest.fixture(scope="session")
def shared_server(start: Start) -> Iterator[RunningServer]:
    with start(max_body_bytes=65536) as server:
        yield server


@pytest.fixture
def server(shared_server: RunningServer) -> RunningServer:
    """The server that most tests use; its engine has been reset."""
    shared_server.engine.reset()
    return shared_server
