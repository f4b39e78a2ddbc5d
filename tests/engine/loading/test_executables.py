"""Executables, taken apart and put together: equal results, donated arrays, on one device and on a mesh."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from vinfer.engine.loading import executables
from vinfer.engine.loading.executables import code_facts

SCRIPT = """
import sys
from pathlib import Path
import jax, numpy as np
from jax import export, numpy as jnp
from jax.sharding import Mesh
from vinfer.bundle.manifest import ArraySpec, KVArray, Manifest, MESH_AXES, ProgramSpec
from vinfer.bundle.programs import ProgramShape
from vinfer.engine.loading.executables import ProgramSignature, compile_program, load_executable, machine_code
from vinfer.engine.loading.mesh import sharding_of

tp, folder = int(sys.argv[1]), Path(sys.argv[2])
sizes = [tp if axis == "tp" else 1 for axis in MESH_AXES]
mesh = Mesh(np.array(jax.devices()[:tp]).reshape(sizes), MESH_AXES)
split = ("tp",) if tp > 1 else ()

class Signature(ProgramSignature):
    def __init__(self):
        array = lambda name, dtype: ArraySpec(name=name, shape=(8,), dtype=dtype, axes=split)
        self.mesh, self.name, self.file = mesh, "p", "p.stablehlo"
        inputs = (array("a", "float32"), array("unread", "int32"), array("b", "float32"))
        self.arguments = ((), (array("kv", "float32"),), (), inputs)
        self.results = (self.arguments[1], (), (array("out", "float32"),))

def program(weights, kv, state, inputs):
    a, _, b = inputs
    return (kv[0] + a,), (), (kv[0] * b + jnp.sum(a),)

signature = Signature()
abstract = [tuple(jax.ShapeDtypeStruct(s.shape, s.dtype) for s in group) for group in signature.arguments]
shardings = signature.shardings(signature.arguments), signature.shardings(signature.results)
exported = export.export(jax.jit(program, in_shardings=shardings[0], out_shardings=shardings[1]))(*abstract)
(folder / "p.stablehlo").write_bytes(exported.serialize())
compiled = compile_program(folder, signature)
code = machine_code(compiled)
loaded = load_executable(code, signature)

def run(call):
    place = sharding_of(signature.arguments[1][0], mesh)
    kv = (jax.device_put(np.arange(8, dtype=np.float32), place),)
    for step in range(3):
        before = kv[0]
        arrays = (np.full(8, 0.5, np.float32), np.zeros(8, np.int32), np.arange(8, dtype=np.float32))
        kv, _, out = call((), kv, (), tuple(jax.device_put(array, place) for array in arrays))
        assert before.is_deleted(), "the KV cache is not donated"
    assert kv[0].sharding == place
    return np.asarray(kv[0]), np.asarray(out[0])

for expected, found in zip(run(compiled), run(loaded), strict=True):
    np.testing.assert_array_equal(expected, found)
try:
    loaded((), (jnp.zeros(9),), (), tuple(jnp.zeros(8) for _ in range(3)))
except TypeError:
    print("as compiled")
"""


@pytest.mark.processes
@pytest.mark.parametrize("tp", [1, 4])
def test_a_loaded_executable_does_what_the_compiled_one_did(tmp_path: Path, tp: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tp), str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={tp}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "as compiled\n", ran.stderr


def test_the_facts_name_versions_devices_flags_and_cpu_features(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = jax.sharding.Mesh(jax.devices()[:1], "x")
    monkeypatch.setenv("XLA_FLAGS", "--xla_b=1 --xla_force_host_platform_device_count=8 --xla_a=2")
    facts = code_facts("cpu", mesh)
    assert facts["flags"] == "--xla_a=2 --xla_b=1"
    assert facts["num_devices"] == "1"
    assert facts["jax"] == jax.__version__
    found = set()
    for features in ("flags: avx2", "flags: avx2 avx512f", ""):
        monkeypatch.setattr(executables, "_cpu_features", lambda features=features: features)
        found.add(code_facts("cpu", mesh)["cpu_features"])
    assert len(found) == 3
    # Another machine's processor decides nothing about code for an accelerator.
    assert code_facts("tpu", mesh)["cpu_features"] == ""


def test_the_clock_of_the_cpu_is_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["flags: avx2\ncpu MHz: 1", "flags: avx2\ncpu MHz: 2", "flags: avx512f\ncpu MHz: 2"])
    monkeypatch.setattr(Path, "read_text", lambda _: next(texts))
    first, second, third = (executables._cpu_features() for _ in range(3))
    assert first == second != third
