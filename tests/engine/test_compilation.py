"""Counting and caching compiles. JAX's cache settings are process-wide, so they are restored."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vinfer.engine import compilation
from vinfer.engine.compilation import CompileCounter, platform_key, seed_cache, set_compilation_cache

SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_persistent_cache_enable_xla_caches",
    "jax_raise_persistent_cache_errors",
)


@pytest.fixture
def settings_put_back() -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    compilation_cache.reset_cache()
    for name, value in before.items():
        jax.config.update(name, value)


def new_program(constant: float) -> Callable[[jax.Array], jax.Array]:
    """Return a function that JAX has not seen before; equal constants make equal programs."""
    return lambda x: x * constant + 1.0


def compile_ahead(constant: float) -> jax.stages.Compiled:
    return jax.jit(new_program(constant)).lower(jax.ShapeDtypeStruct((3,), np.float32)).compile()


def test_a_compile_after_ready_is_counted_and_a_compiled_call_is_not() -> None:
    counter = CompileCounter()
    compiled = compile_ahead(1.25)
    assert counter.num_compiles == 1
    assert counter.num_post_ready == 0
    counter.mark_ready()
    for _ in range(3):
        np.asarray(compiled(np.ones(3, np.float32)))
    assert counter.num_post_ready == 0
    # The negative control: the same value computed by a new program.
    np.asarray(jax.jit(new_program(1.5))(np.ones(3, np.float32)))
    assert counter.num_post_ready == 1
    assert counter.num_compiles == 2


def test_small_programs_are_cached_and_found_again(settings_put_back: None, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    set_compilation_cache(cache)
    assert cache.stat().st_mode & 0o777 == 0o700
    counter = CompileCounter()
    compile_ahead(2.25)
    assert (counter.num_compiles, counter.num_cache_hits) == (1, 0)
    assert list(cache.glob("*-cache"))
    compile_ahead(2.25)
    # A load from the cache counts as a compile too: after ready neither may happen.
    assert (counter.num_compiles, counter.num_cache_hits) == (2, 1)


def test_a_seeded_cache_serves_what_another_one_compiled(settings_put_back: None, tmp_path: Path) -> None:
    """JAX's default key contains the cache's own path, so no entry was ever found in another cache."""
    set_compilation_cache(tmp_path / "first")
    compile_ahead(3.25)
    set_compilation_cache(tmp_path / "second")
    seed_cache(tmp_path / "first", tmp_path / "second")
    counter = CompileCounter()
    compile_ahead(3.25)
    assert counter.num_cache_hits == 1


def test_a_corrupt_cache_entry_is_compiled_anew(settings_put_back: None, tmp_path: Path) -> None:
    set_compilation_cache(tmp_path)
    compile_ahead(4.25)
    for file in tmp_path.glob("*-cache"):
        file.write_bytes(b"not a program")
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        compiled = compile_ahead(4.25)
    np.testing.assert_array_equal(compiled(np.ones(3, np.float32)), np.full(3, 5.25, np.float32))


def test_a_cache_that_cannot_be_made_warns_and_goes_on(
    settings_put_back: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # A path below a regular file fails for root too.
    (tmp_path / "file").write_text("")
    set_compilation_cache(tmp_path / "before")
    set_compilation_cache(tmp_path / "file" / "cache")
    assert "no compilation cache" in caplog.text
    assert "every start compiles anew" in caplog.text
    np.testing.assert_array_equal(compile_ahead(5.25)(np.ones(3, np.float32)), np.full(3, 6.25, np.float32))
    assert list((tmp_path / "before").iterdir()) == []


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777, 0o722])
def test_a_cache_that_others_can_write_to_is_made_private(
    mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever writes to it can run code in this process; mode 777 was once used without a word."""
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    set_compilation_cache(cache)
    assert not cache.stat().st_mode & 0o022
    assert f"had mode {mode:04o}" in caplog.text
    assert jax.config.jax_compilation_cache_dir == str(cache)


def test_a_cache_of_somebody_else_that_others_can_write_to_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o777)
    monkeypatch.setattr("vinfer.engine.compilation.os.geteuid", lambda: os.getuid() + 1)
    set_compilation_cache(tmp_path)
    assert "no compilation cache" in caplog.text
    assert "has mode 0777 and another owner" in caplog.text
    assert jax.config.jax_compilation_cache_dir is None
    tmp_path.chmod(0o755)
    set_compilation_cache(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_seeding_copies_what_is_missing_and_keeps_what_is_there(tmp_path: Path) -> None:
    bundle, cache = tmp_path / "bundle", tmp_path / "cache"
    bundle.mkdir()
    cache.mkdir()
    (bundle / "a-cache").write_bytes(b"a of the bundle")
    (bundle / "b-cache").write_bytes(b"b of the bundle")
    (cache / "b-cache").write_bytes(b"b of the cache")
    seed_cache(bundle, cache)
    seed_cache(bundle, cache)
    found = {file.name: file.read_bytes() for file in cache.iterdir()}
    assert found == {"a-cache": b"a of the bundle", "b-cache": b"b of the cache"}


@pytest.mark.parametrize("target", ["missing", "file/cache"])
def test_seeding_a_cache_that_cannot_be_written_warns(
    target: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "a-cache").write_bytes(b"a")
    seed_cache(tmp_path / "bundle", tmp_path / target)
    assert "compiled code could not be copied" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only directories")
def test_seeding_a_read_only_cache_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "a-cache").write_bytes(b"a")
    (tmp_path / "cache").mkdir(mode=0o500)
    seed_cache(tmp_path / "bundle", tmp_path / "cache")
    assert "compiled code could not be copied" in caplog.text


def test_a_bundle_without_compiled_code_seeds_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seed_cache(tmp_path / "missing", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert caplog.text == ""


def test_the_platform_key_names_platform_kind_and_cpu_features(monkeypatch: pytest.MonkeyPatch) -> None:
    platform = jax.local_devices()[0].platform
    assert re.fullmatch(rf"{platform}-[a-z0-9_.:+-]+-[0-9a-f]{{12}}", platform_key())
    assert platform_key() == platform_key()
    keys = set()
    for features in ("flags: avx2", "flags: avx2 avx512f", ""):
        monkeypatch.setattr(compilation, "_cpu_features", lambda features=features: features)
        keys.add(platform_key())
    assert len(keys) == 3


def test_the_cpu_features_are_those_of_this_machine() -> None:
    features = compilation._cpu_features()
    assert features
    assert "MHz" not in features
