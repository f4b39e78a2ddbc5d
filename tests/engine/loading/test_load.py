"""Loading weights from files onto devices: the right values, and no second copy in memory."""

from __future__ import annotations

import gc
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax import export
from jax.experimental.layout import Format, Layout
from safetensors.numpy import save_file

from vinfer.bundle.manifest import (
    FORMAT_VERSION,
    Manifest,
    ModelCard,
    ProgramSpec,
    StateSpec,
    WeightSpec,
)
from vinfer.bundle.programs import ProgramShape
from vinfer.compiler.export.weight_file import write_weight_file
from vinfer.compiler.weights import Part, Weight
from vinfer.engine.loading import load
from vinfer.engine.loading.compile_count import CompileCounter
from vinfer.engine.loading.load import load_model
from vinfer.engine.loading.loaded_model import LoadedModel
from vinfer.engine.loading.mesh import make_mesh, weight_placement
from vinfer.errors import BundleError

NUM_WEIGHTS, MEBIBYTE = 12, 1 << 20


def _values(index: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(index).standard_normal((512, 1024)).astype(ml_dtypes.bfloat16)


def _manifest(weights: tuple[WeightSpec, ...]) -> Manifest:
    return Manifest(
        format_version=FORMAT_VERSION,
        key="0" * 64,
        created=0,
        versions={},
        platform="cpu",
        mesh={"dp": 1, "fsdp": 1, "ep": 1, "tp": 1, "sp": 1},
        dtype="bfloat16",
        num_slots=1,
        max_model_len=1,
        page_size=1,
        model=ModelCard(
            source="",
            architecture="llama",
            task="text",
            num_parameters=0,
            bos_token_id=None,
            eos_token_ids=(),
            pad_token_id=None,
            vocab_size=1,
            sampling_defaults={},
        ),
        weights=weights,
        kv_windows=(),
        kv=(),
        state=(StateSpec(name="active", shape=(1,), dtype="bool", initial=False),),
        programs=(
            ProgramSpec(
                shape=ProgramShape(kind="set_slot"), file="set_slot.stablehlo", inputs=(), outputs=()
            ),
        ),
        files={},
    )


@pytest.fixture
def weights(tmp_path: Path) -> tuple[WeightSpec, ...]:
    """Write a program and weights of one MiB each, which alternate between two files, as in real models."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "programs").mkdir()
    set_slot = jax.jit(lambda weights, kv, state, inputs: (kv, state, ()), keep_unused=True)
    exported = export.export(set_slot)((), (), (jax.ShapeDtypeStruct((1,), bool),), ())
    (tmp_path / "programs" / "set_slot.stablehlo").write_bytes(exported.serialize())
    for file in range(2):
        tensors = {f"w{index}": _values(index) for index in range(file, NUM_WEIGHTS, 2)}
        save_file(tensors, tmp_path / "weights" / f"{file}.safetensors")
    return tuple(
        WeightSpec(name=f"w{index}", shape=(512, 1024), dtype="bfloat16", file=f"{index % 2}.safetensors")
        for index in range(NUM_WEIGHTS)
    )


def _load(
    directory: Path,
    weights: tuple[WeightSpec, ...],
    on_progress: Callable[[], None] = lambda: None,
) -> LoadedModel:
    return load_model(
        directory,
        _manifest(weights),
        devices=jax.devices(),
        num_pages=(),
        code_roots=(directory / "code",),
        dispatch_lock=threading.Lock(),
        progress=lambda *_: on_progress(),
    )


def _mapped_bytes(directory: Path) -> int:
    """Return how many bytes of the files under a directory this process has in memory."""
    entries = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    sizes = [re.search(r"(?m)^Rss: +(\d+) kB", entry) for entry in entries if f"{directory}/" in entry]
    return sum(int(size[1]) * 1024 for size in sizes if size is not None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_do_not_stay_in_memory(
    tmp_path: Path, weights: tuple[WeightSpec, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page that was read stayed mapped until the last weight, so loading took twice the memory.

    These weights begin where XLA takes no array, so they are copied, as on an accelerator.
    """
    for path in (tmp_path / "weights").iterdir():
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        spaces = -length % 64
        header = (length + spaces).to_bytes(8, "little") + content[8 : 8 + length] + b" " * spaces
        path.write_bytes(header + content[8 + length :])
    monkeypatch.setattr(load, "_MAX_READ_BYTES", 0)
    mapped: list[int] = []
    model = _load(tmp_path, weights, lambda: mapped.append(_mapped_bytes(tmp_path)))
    # Pages of two MiB are mapped whole, and JAX lets go of an array a little after its copy has ended.
    assert MEBIBYTE <= max(mapped) <= 8 * MEBIBYTE
    assert _mapped_bytes(tmp_path) == 0
    for index, array in enumerate(model.weights):
        np.testing.assert_array_equal(np.asarray(array), _values(index))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cpu_uses_the_weights_of_a_bundle_where_they_are_mapped(
    tmp_path: Path, weights: tuple[WeightSpec, ...]
) -> None:
    """They are in memory once, and however many models and processes use them."""
    for file in range(2):
        own = [f"w{index}" for index in range(file, NUM_WEIGHTS, 2)]
        write_weight_file(
            tmp_path / "weights" / f"{file}.safetensors",
            [
                Weight(name=name, shape=(512, 1024), dtype="bfloat16", axes=(), parts=(Part(name),))
                for name in own
            ],
            lambda name: _values(int(name[1:])),
            written=lambda: None,
        )
    model = _load(tmp_path, weights)
    assert _mapped_bytes(tmp_path) >= NUM_WEIGHTS * MEBIBYTE
    for index, array in enumerate(model.weights):
        np.testing.assert_array_equal(np.asarray(array), _values(index))
    other = _load(tmp_path, weights)
    # Either load has mapped each file once.
    places = [[array.unsafe_buffer_pointer() for array in each.weights[::2]] for each in (model, other)]
    assert all(place - each[0] == MEBIBYTE * nth for each in places for nth, place in enumerate(each))
    # A bundle that replaces this one changes nothing.
    (tmp_path / "weights").rename(tmp_path / "old")
    for path in (tmp_path / "old").iterdir():
        path.unlink()
    for index, array in enumerate(other.weights):
        np.testing.assert_array_equal(np.asarray(array), _values(index))
    model.release()
    other.release()
    del model, other, array
    gc.collect()
    assert _mapped_bytes(tmp_path) == 0


def test_weights_on_a_tpu_lie_in_the_order_of_their_axes(
    tmp_path: Path, weights: tuple[WeightSpec, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPU would choose an order itself. CPU devices stand in for it: they accept the only one they have."""
    on_cpu = make_mesh(_manifest(weights), jax.devices())
    assert not isinstance(weight_placement(weights[0], on_cpu), Format)
    monkeypatch.setattr("vinfer.engine.loading.mesh._is_tpu", lambda mesh: True)
    placed = weight_placement(weights[0], on_cpu)
    assert isinstance(placed, Format)
    assert placed.layout == Layout(major_to_minor=(0, 1))
    norm = weights[0].model_copy(update={"shape": (2880,)})
    assert not isinstance(weight_placement(norm, on_cpu), Format)
    for index, array in enumerate(_load(tmp_path, weights).weights):
        np.testing.assert_array_equal(np.asarray(array), _values(index))


def test_a_file_that_is_not_what_the_manifest_says_is_an_error(
    tmp_path: Path, weights: tuple[WeightSpec, ...]
) -> None:
    other = weights[0].model_copy(update={"shape": (1024, 512)})
    with pytest.raises(BundleError, match=r"w0 has shape \[512, 1024\], the manifest says \[1024, 512\]"):
        _load(tmp_path, (other, *weights[1:]))
    strange = weights[0].model_copy(update={"name": "w99"})
    with pytest.raises(BundleError, match=r"0\.safetensors is not readable \(it has no 'w99'\): run"):
        _load(tmp_path, (strange, *weights[1:]))
    path = tmp_path / "weights" / "1.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0", whole[:20], whole[:4], b"", b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"weights/1\.safetensors is not readable .*precompile again"):
            _load(tmp_path, weights)
    path.unlink()
    with pytest.raises(BundleError, match=r"weights/1\.safetensors is not readable .*precompile again"):
        _load(tmp_path, weights)


def test_a_second_load_compiles_no_program(
    tmp_path: Path, weights: tuple[WeightSpec, ...], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    counter = CompileCounter()
    _load(tmp_path, weights)
    assert "1 programs ready, 0 of them loaded as machine code" in caplog.text
    num_compiles = counter.num_compiles
    caplog.clear()
    model = _load(tmp_path, weights)
    assert "1 programs ready, 1 of them loaded as machine code" in caplog.text
    # What fills the first arrays is compiled at each start.
    assert counter.num_compiles - num_compiles == num_compiles - 1
    (program,) = model.programs.values()
    _, state, _ = program.run((), (), model.state, {})
    assert np.asarray(state[0]).tolist() == [False]


@pytest.mark.parametrize(
    "content", [b"", b"{}\nx", b'{"sha256": "0", "kept_inputs": [], "temporary_bytes": 0}\nx']
)
def test_damaged_code_is_compiled_and_stored_anew(
    tmp_path: Path, weights: tuple[WeightSpec, ...], content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    _load(tmp_path, weights)
    (stored,) = (tmp_path / "code").rglob("*.code")
    stored.write_bytes(content)
    caplog.set_level("INFO")
    _load(tmp_path, weights)
    assert f"{stored} is not used: it is damaged; compiling the program" in caplog.text
    _load(tmp_path, weights)
    assert "1 programs ready, 1 of them loaded as machine code" in caplog.text


def test_bytes_that_the_runtime_refuses_are_compiled_anew(
    tmp_path: Path, weights: tuple[WeightSpec, ...], caplog: pytest.LogCaptureFixture
) -> None:
    _load(tmp_path, weights)
    (stored,) = (tmp_path / "code").rglob("*.code")
    executable = b"whole, and no executable"
    header = {
        "sha256": hashlib.sha256(executable).hexdigest(),
        "kept_inputs": [0],
        "temporary_bytes": 0,
    }
    stored.write_bytes(json.dumps(header).encode() + b"\n" + executable)
    _load(tmp_path, weights)
    assert "the stored code of set_slot does not load" in caplog.text


def test_code_that_cannot_be_stored_is_said_and_served(
    tmp_path: Path, weights: tuple[WeightSpec, ...], caplog: pytest.LogCaptureFixture
) -> None:
    # A path below a regular file fails for root too.
    (tmp_path / "code").write_text("")
    _load(tmp_path, weights)
    assert f"machine code cannot be stored in {tmp_path / 'code'}; every start compiles anew" in caplog.text


def test_code_for_another_machine_is_named(
    tmp_path: Path,
    weights: tuple[WeightSpec, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    _load(tmp_path, weights)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    _load(tmp_path, weights)
    assert "the stored machine code is for another machine: flags  (here --xla_cpu" in caplog.text
