"""Makes a chosen function of a server fail once, whenever a test asks for it.

The file that FAILPOINTS_FILE names holds lines `THREAD/POINT KIND`, such as `engine-tiny/decode raise`. The
next call of that point on that thread fails in that way, and uses the line up, unless KIND ends with `*`.
`raise@5` fails the fifth call from now on. A thread is named by the beginning of its name.
vinfer knows nothing of this: only a process with this folder in PYTHONPATH has failpoints, and whoever can
set that can run any code there.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

POINTS = {
    "decode": ("vinfer.engine.runner", "Runner", "decode"),
    "prefill": ("vinfer.engine.runner", "Runner", "prefill"),
    "load": ("vinfer.engine.runner", "Runner", "warm_up"),
    "run": ("vinfer.engine.loading.loaded_model", "LoadedModel", "run"),
    "tokenize": ("vinfer.text.tokenizer", "Tokenizer", "encode"),
    "detokenize": ("vinfer.text.detokenizer", "Detokenizer", "push"),
}
"""By name: module, class and method."""


def _fail(kind: str) -> None:
    if kind == "raise":
        raise RuntimeError("failpoint")
    if kind == "exit":
        raise SystemExit(0)
    if kind == "oom":
        import jax

        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")
    if kind == "hang":
        threading.Event().wait()
    raise AssertionError(f"unknown kind of failure: {kind}")


class _Failpoints(importlib.abc.MetaPathFinder):
    """Wraps the functions of `POINTS` when their modules are imported."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in {module for module, _, _ in POINTS.values()}:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_wrap(module: ModuleType) -> None:
            execute(module)
            for point, (place, owner, method) in POINTS.items():
                if place == name:
                    kind = getattr(module, owner)
                    setattr(kind, method, self._wrapped(point, getattr(kind, method)))

        spec.loader.exec_module = execute_and_wrap  # type: ignore[method-assign]
        return spec

    def _wrapped(self, point: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            kind = self._take(f"{threading.current_thread().name}/{point}")
            if kind is not None:
                _fail(kind)
            return function(*args, **kwargs)

        return call

    def _take(self, place: str) -> str | None:
        """Return how a call must fail, if at all."""
        with self._lock:
            lines = self._path.read_text().splitlines() if self._path.is_file() else []
            for line in lines:
                wanted, kind = line.split()
                thread, _, point = wanted.partition("/")
                if not (place.startswith(thread) and place.endswith(f"/{point}")):
                    continue
                kind, _, calls = kind.partition("@")
                is_due = int(calls or 1) == 1
                if not kind.endswith("*"):
                    left = [] if is_due else [f"{wanted} {kind}@{int(calls) - 1}"]
                    self._path.write_text("\n".join([*left, *(other for other in lines if other != line)]))
                return kind.rstrip("*") if is_due else None
        return None


def install(path: Path) -> None:
    sys.meta_path.insert(0, _Failpoints(path))
