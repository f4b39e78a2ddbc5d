"""The loader thread: whatever ends it is reported, and changed weights are refused while they are loaded."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest

from vinfer.bundle.manifest import Manifest
from vinfer.config import Config, ModelConfig
from vinfer.errors import BundleError
from vinfer.launch import loader as module
from vinfer.launch.loader import Loader, start_engine
from vinfer.server.model_table import ModelTable


@pytest.mark.parametrize(
    "error", [SystemExit(0), KeyboardInterrupt(), RuntimeError("x"), BundleError("y")], ids=repr
)
def test_whatever_ends_the_thread_is_reported(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that calls sys.exit once left the server unready for ever."""
    table = ModelTable(["m"])
    config = Config(models=(ModelConfig(name="m", source="org/m"),), cache_dir=tmp_path)
    loader = Loader(config, table, wanted=None, code_cache=tmp_path, show=lambda _: None)

    def fail(_: Loader) -> None:
        raise error

    monkeypatch.setattr(Loader, "_initialize", fail)
    thread = threading.Thread(target=loader.run)
    thread.start()
    thread.join(20)
    assert table.failure is not None
    assert table.failure.exit_code == (BundleError.exit_code if isinstance(error, BundleError) else 1)


class LoadedError(Exception):
    pass


@pytest.mark.parametrize("verify_weights", [True, False])
def test_changed_weights_are_refused_while_they_are_loaded(
    verify_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 kB of zeros in a file of weights were once served."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "00000.safetensors").write_bytes(bytes(20_000))
    manifest = Manifest.model_construct(files={"weights/00000.safetensors": "0" * 64})

    class Runner:
        def warm_up(self) -> None:
            raise LoadedError

    monkeypatch.setattr(module, "device_pages", lambda *_, **__: (1,))
    monkeypatch.setattr(module, "device_memory_bytes", lambda _: None)
    monkeypatch.setattr("vinfer.engine.loading.load.load_runner", lambda *_, **__: Runner())
    arguments: dict[str, Any] = {"devices": (None,), "code_roots": (), "dispatch_lock": threading.Lock()}
    expected = pytest.raises(BundleError, match=r"weights/00000\.safetensors was changed after the build")
    with expected if verify_weights else pytest.raises(LoadedError):
        start_engine(
            tmp_path,
            manifest,
            ModelConfig(name="m", source="org/m"),
            progress=lambda *_: None,
            verify_weights=verify_weights,
            **arguments,
        )
    assert gc.isenabled()
