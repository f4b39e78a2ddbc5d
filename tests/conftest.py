"""What holds for every test: no model hub, no distributed start-up, fast compiles, no clock in Hypothesis.

Also the markers, and which tests a run leaves out.

Bundles and engines are fixtures of the folders that use them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from compiling import compile_fast
from hypothesis import settings

# Before any test module is imported: all are read at import time.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ENABLE_DISTRIBUTED_INIT"] = "0"
# The tests say what float32 on a CPU gives; an accelerator that happens to be here is none of their business.
os.environ["JAX_PLATFORMS"] = "cpu"
# No test speaks TLS, and a client would read all certificates of the machine first, which takes 30 ms.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = os.devnull

# A deadline per example fails on a busy machine and nowhere else. Under CI the same examples come every time.
settings.register_profile("vinfer", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.register_profile("quick", settings.get_profile("vinfer"), max_examples=25)
settings.load_profile("vinfer")

_BUILD = Path(__file__).parents[1] / ".build"
MARKERS = (
    "bundles(*names): needs these bundles of tests/tiny/bundles.py, or builds one itself",
    "alone: measures time, so no test of another worker or quick part runs meanwhile",
    "compiles: compiles programs or kernels by the dozen, which takes most of a minute for all such tests",
    "easydel: imports EasyDeL, which takes 20 s",
    "processes: starts vinfer or JAX in processes of their own, which takes seconds",
    "torch: imports torch or transformers; a file of such tests begins with importorskip instead",
    "slow: left out of every run but `scripts/test slow`",
    "whole_matrix: one more of a kind that every run has; for `scripts/test slow` and `scripts/parity`",
)
LEFT_OUT = ("slow", "whole_matrix")
LEFT_OUT_OF_QUICK = ("bundles", "compiles", "easydel", "processes", "torch")
_NEEDS_TORCH = re.compile(r'^pytest\.importorskip\("(torch|transformers)"', re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run what is marked slow or whole_matrix too")
    parser.addoption("--quick", action="store_true", help=f"leave out {', '.join(LEFT_OUT_OF_QUICK)}")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if not _is_whole(config):
        compile_fast()
    if config.getoption("--quick"):
        settings.load_profile("quick")


def _is_whole(config: pytest.Config) -> bool:
    """Whether a run leaves nothing out, and compiles as a server does."""
    return config.getoption("--slow") or config.getoption("--models-doc", default=None) is not None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files that need torch out of the quick run before they import it."""
    is_left_out = (
        config.getoption("--quick")
        and collection_path.suffix == ".py"
        and _NEEDS_TORCH.search(collection_path.read_text()) is not None
    )
    return is_left_out or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the slow run has, or only the whole run."""
    names = () if _is_whole(config) else LEFT_OUT
    if config.getoption("--quick"):
        names += LEFT_OUT_OF_QUICK
    left_out = {item for item in items if any(item.get_closest_marker(name) for name in names)}
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=list(left_out))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Among workers or quick parts, run what is marked alone while no other test runs."""
    with contextlib.ExitStack() as locks:
        if hasattr(item.config, "workerinput") or item.config.getoption("--quick"):
            _BUILD.mkdir(exist_ok=True)
            turn, running = (
                locks.enter_context((_BUILD / name).open("w")) for name in (".turn.lock", ".running.lock")
            )
            # A test that waits for its turn keeps others from starting.
            fcntl.flock(turn, fcntl.LOCK_EX)
            fcntl.flock(running, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH)
            fcntl.flock(turn, fcntl.LOCK_UN)
        return (yield)
