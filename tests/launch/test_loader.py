"""The loader thread: whatever ends it is reported, and changed weights are refused while they are loaded."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vinfer.bundle.manifest import Manifest
from vinfer.checkpoint.source import ResolvedSource
from vinfer.config import Config, ModelConfig
from vinfer.errors import BundleError
from vinfer.launch import engine_start
from vinfer.launch import loader as module
from vinfer.launch.bundles import FoundBundle
from vinfer.launch.devices import Target
from vinfer.launch.engine_start import start_engine
from vinfer.launch.loader import MAX_PARALLEL_LOADS, Loader, model_table
from vinfer.launch.progress.times import Work
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

    def fail(_: Loader, name: str) -> None:
        raise error

    monkeypatch.setattr(Loader, "_initialize", fail)
    thread = threading.Thread(target=loader.run)
    thread.start()
    thread.join(20)
    assert table.failure is not None
    assert table.failure.exit_code == (BundleError.exit_code if isinstance(error, BundleError) else 1)


class StillEngine:
    is_alive = True


@pytest.mark.parametrize("num_models", [2, 6])
def test_models_load_together_but_are_built_one_at_a_time(
    num_models: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = min(num_models, MAX_PARALLEL_LOADS)
    meeting = threading.Barrier(together)
    lock = threading.Lock()
    running = {"builds": 0, "loads": 0}
    most = dict(running)

    @contextlib.contextmanager
    def counted(what: str) -> Iterator[None]:
        with lock:
            running[what] += 1
            most[what] = max(most[what], running[what])
        try:
            yield
        finally:
            with lock:
                running[what] -= 1

    def find_or_build(model: ModelConfig, **_: Any) -> Any:
        """Two at a time also failed: Python 3.11 cannot parse source code on two threads."""
        with counted("builds"):
            time.sleep(0.01)
        source = ResolvedSource("x", "hf", tmp_path, {})
        return FoundBundle(tmp_path, source, Manifest.model_construct(key="k"))

    met: list[str] = []

    def start_engine(bundle: FoundBundle, model: ModelConfig, target: Target, **_: Any) -> Any:
        with counted("loads"):
            if len(met) < together:
                met.append(model.name)
                # Returns only if the others are loading too.
                meeting.wait(20)
        return StillEngine()

    monkeypatch.setattr(module, "find_or_build", find_or_build)
    monkeypatch.setattr(module, "start_engine", start_engine)
    monkeypatch.setattr(module, "check_new_bundle", lambda *_, **__: None)
    monkeypatch.setattr(module, "bundle_work", lambda *_: Work("cpu", 1, 1, 1))
    monkeypatch.setattr(
        module,
        "served_model",
        lambda directory, manifest, model, engine, **_: type(
            "Served", (), {"name": model.name, "engine": engine}
        )(),
    )
    names = [f"m{i}" for i in range(num_models)]
    table = ModelTable(names)
    config = Config(models=tuple(ModelConfig(name=name, source="org/m") for name in names))
    Loader(config, table, wanted=None, code_cache=tmp_path, show=lambda _: None).run()
    assert table.ready
    assert most == {"builds": 1, "loads": together}


@pytest.mark.parametrize("is_required", [True, False], ids=["required", "optional"])
def test_a_model_that_does_not_load(
    is_required: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is served in any case; only a required one makes the server fail."""

    def load(self: Loader, position: int) -> None:
        if position == 1:
            raise BundleError("its file is gone")
        served: Any = type("Served", (), {"name": "other", "engine": StillEngine()})()
        table.serve(served)

    monkeypatch.setattr(Loader, "_load", load)
    monkeypatch.setattr(Loader, "_initialize", lambda *_: None)
    models = (
        ModelConfig(name="other", source="org/m"),
        ModelConfig(name="m", source="org/m", required=is_required),
    )
    table = ModelTable(["other", "m"], [model.name for model in models if not model.required])
    loader = Loader(Config(models=models), table, wanted=None, code_cache=tmp_path, show=lambda _: None)
    loader.run()
    assert [served.name for served in table.served_models] == ["other"]
    assert table.statuses[1].phase == "failed"
    assert table.ready is not is_required
    assert (table.failure is not None) is is_required
    assert not table.loading


class LoadedError(Exception):
    pass


@pytest.mark.parametrize("verify_weights", [True, False])
def test_changed_weights_are_refused_while_they_are_loaded(
    verify_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 kB of zeros in a file of weights were once served."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "00000.safetensors").write_bytes(bytes(20_000))
    manifest = Manifest.model_construct(
        files={"weights/00000.safetensors": "0" * 64}, num_slots=1, mesh={"dp": 1}
    )

    class Runner:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise LoadedError

    monkeypatch.setattr(engine_start, "device_pages", lambda *_, **__: (1,))
    monkeypatch.setattr("vinfer.engine.loading.load.load_model", lambda *_, **__: None)
    monkeypatch.setattr("vinfer.engine.runner.Runner", Runner)
    bundle = FoundBundle(tmp_path, ResolvedSource("x", "hf", tmp_path, {}), manifest)
    expected = pytest.raises(BundleError, match=r"weights/00000\.safetensors was changed after the build")
    with expected if verify_weights else pytest.raises(LoadedError):
        start_engine(
            bundle,
            ModelConfig(name="m", source="org/m"),
            Target(platform="cpu", num_devices=1),
            code_roots=(),
            progress=lambda *_: None,
            verify_weights=verify_weights,
        )
    assert gc.isenabled()


def test_the_table_of_a_config_knows_what_may_be_missing() -> None:
    models = [{"name": "a", "source": "org/a"}, {"name": "b", "source": "org/b", "required": False}]
    table = model_table(Config.model_validate({"models": models}))
    assert [status.name for status in table.statuses] == ["a", "b"]
    assert [table.is_required(name) for name in "ab"] == [True, False]
