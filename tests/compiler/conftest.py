"""Bundles, engines and references shared by the tests of the build half, each made once per session.

The bundles that the collected tests name with `@pytest.mark.bundles(...)` are built two at a time, starting
at the first use: importing EasyDeL is most of a build and runs on one core.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tiny.models_doc import MatrixRow, models_doc

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vinfer.engine.engine import Engine

_NUM_BUILDS = 2


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
def bundle_of(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Path]]:
    """Yield a function that returns a bundle's directory by its name in `BUNDLES`; it waits for the build."""
    pytest.importorskip("torch", reason="tiny checkpoints are written by transformers with torch")
    from tiny.bundles import BUNDLES, FAMILY_BUNDLES, build, build_in_one_process, model_config

    wanted = {
        name for item in request.session.items for mark in item.iter_markers("bundles") for name in mark.args
    }
    for name in wanted:
        # One thread writes the checkpoints first.
        model_config(name)
    with ThreadPoolExecutor(_NUM_BUILDS, thread_name_prefix="build") as pool:
        # Bundles of the matrix share one process; one that fails there is rebuilt alone, to show why.
        families = pool.submit(build_in_one_process, [name for name in FAMILY_BUNDLES if name in wanted])

        def build_family(name: str) -> Path:
            families.result()
            return build(name)

        builds: dict[str, Future[Path]] = {
            name: pool.submit(build_one, name)
            for bundles, build_one in ((BUNDLES, build), (FAMILY_BUNDLES, build_family))
            for name in bundles
            if name in wanted
        }
        try:
            yield lambda name: builds[name].result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


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
