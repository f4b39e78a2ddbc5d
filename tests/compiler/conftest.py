"""Bundles, engines and references shared by the tests of the build half, each made once per session.

Bundles that the collected tests name with `@pytest.mark.bundles(...)` are built together at the first use.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tiny.models_doc import MatrixRow, models_doc

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--models-doc",
        type=Path,
        help="also measure the families in bfloat16, and write the parity matrix to this file",
    )


@pytest.fixture(scope="session")
def matrix(request: pytest.FixtureRequest) -> Iterator[dict[str, MatrixRow]]:
    """Collect the results of the parity tests; write them at the end if `--models-doc` names a file."""
    rows: dict[str, MatrixRow] = {}
    yield rows
    path = request.config.getoption("--models-doc", default=None)
    if path is not None:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        path.parent.mkdir(exist_ok=True)
        path.write_text(models_doc(rows.values(), versions))


@pytest.fixture(scope="session")
def bundle_of(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Return a bundle's directory by its name in `BUNDLES`."""
    pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")
    from tiny.bundles import build, build_together

    wanted = {
        name for item in request.session.items for mark in item.iter_markers("bundles") for name in mark.args
    }
    build_together(sorted(wanted))
    # What failed there is built once more, alone, and says why.
    return functools.cache(build)


@pytest.fixture(scope="session")
def engine_of(bundle_of: Callable[[str], Path]) -> Iterator[Callable[[str], Engine]]:
    """Yield a function that returns a running engine over a one-device bundle."""
    from tiny.bundles import model_config
    from tiny.engines import load_engine

    engines: dict[str, Engine] = {}

    def engine(name: str) -> Engine:
        if name not in engines:
            engines[name] = load_engine(bundle_of(name), model_config(name))
        return engines[name]

    yield engine
    for running in engines.values():
        running.stop()


@pytest.fixture(scope="session")
def post_to(
    bundle_of: Callable[[str], Path], engine_of: Callable[[str], Engine]
) -> Iterator[Callable[[str], Callable[..., httpx.Response]]]:
    """Yield a function that sends a body to a server over a bundle."""
    from chat_with_images import server_over
    from tiny.bundles import model_config

    with ExitStack() as servers:

        @functools.cache
        def post(name: str) -> Callable[..., httpx.Response]:
            return servers.enter_context(server_over(bundle_of(name), model_config(name), engine_of(name)))

        yield post


@pytest.fixture(scope="session")
def lent_engine(bundle_of: Callable[[str], Path]) -> Callable[[str], AbstractContextManager[Engine]]:
    """Lend an engine temporarily: the code of too many engines fills a process's memory map."""
    from tiny.bundles import model_config
    from tiny.engines import load_engine

    @contextmanager
    def lend(name: str) -> Iterator[Engine]:
        engine = load_engine(bundle_of(name), model_config(name))
        try:
            yield engine
        finally:
            engine.stop()

    return lend


@pytest.fixture(scope="session")
def reference_of() -> Callable[[str], PreTrainedModel]:
    """Return a function that loads transformers' model of a checkpoint in float32."""
    torch = pytest.importorskip("torch")
    from tiny.checkpoints import reference

    # Matrices of this size gain nothing from a second thread, and its spinning costs the other core.
    torch.set_num_threads(1)

    return functools.cache(reference)
