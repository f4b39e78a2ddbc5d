"""`vinfer plan`: figures of a bundle and of a checkpoint, what does not fit, and what it prints."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle.written_bundle import make_manifest
from checkpoint.conftest import tiny_model, write_hf_directory
from rich.console import Console

from vinfer.bundle.directory import write_manifest
from vinfer.bundle.manifest import ArraySpec, ProgramSpec
from vinfer.bundle.programs import ProgramShape
from vinfer.compiler.plan import build_versions
from vinfer.config import Config
from vinfer.engine.loading.code_store import CodeStore, MachineCode
from vinfer.errors import ConfigError, DeviceError
from vinfer.launch.devices import WantedDevices
from vinfer.launch.kv_memory import DeviceMemory
from vinfer.launch.plan import CODE_BYTES, CODE_BYTES_PER_WEIGHT, Plan, as_json, plan_models, require_fit
from vinfer.launch.plan_table import print_plan

V5E = WantedDevices("tpu", 8, "v5e")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Return a bundle for 8 TPU devices, with machine code for two numbers of pages."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    decode, prefill = (
        ProgramSpec(
            shape=ProgramShape(kind=kind, rows=4, length=8),
            file="",
            inputs=(ArraySpec(name="slots", shape=(4,), dtype="int32"),),
            outputs=(),
        )
        for kind in ("decode", "prefill")
    )
    manifest = make_manifest({}).model_copy(
        update={"platform": "tpu", "versions": build_versions(), "programs": (decode, prefill)}
    )
    write_manifest(directory, manifest)
    facts = {"platform": "tpu", "device_kind": "TPU v5e", "num_devices": "8", **build_versions()}
    for pages, name, size in [((4, 4), "decode[4,8]", 700), ((8, 8), "prefill[4,8]", 900)]:
        store = CodeStore([directory / "code"], facts, pages)
        assert store.write(name, MachineCode(b"", (), size))
        assert store.write("set_slot", MachineCode(b"", (), 10**9))
    other = CodeStore([directory / "code"], {**facts, "device_kind": "TPU v6e"}, (4, 4))
    assert other.write("decode[4,8]", MachineCode(b"", (), 10**9))
    return directory


def planned(tmp_path: Path, *models: dict[str, Any], wanted: WantedDevices | None = V5E) -> Plan:
    config = Config.model_validate({"models": list(models), "cache_dir": str(tmp_path / "cache")})
    return plan_models(config, wanted=wanted, code_cache=tmp_path / "xla")


def printed(plan: Plan, width: int = 80) -> str:
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=width))
    return out.getvalue()


def test_a_bundle_has_exact_figures(bundle: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, {"name": "m", "source": str(bundle)})
    [model] = plan.models
    # [16, 8] of bfloat16 over dp and tp, and a norm of 8 float32; 2 slots of state in each of 2 shards.
    assert model.fit.parts.by_name == {"weights": 16 * 8 * 2 // 8 + 32, "state": 2 * (1 + 64 + 4)}
    # Of the largest programs that read the cache, for this kind of device only.
    assert model.temporary_bytes == 900
    # 2 slots of 64 tokens in pages of 16: 4 pages each, and code is there for just as many.
    assert model.fit.num_pages == (8, 4)
    assert model.num_together == {64: 4}
    require_fit(plan)
    written = as_json(plan)
    assert written["fits"]
    assert written["device_bytes"] == 15 * 2**30 + 3 * 2**28
    assert written["models"][0]["bytes"]["temporary"] == 900
    assert written["left_bytes"] == written["device_bytes"] - sum(written["models"][0]["bytes"].values())


def test_without_machine_code_temporary_memory_is_not_known(bundle: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path, {"name": "m", "source": str(bundle)}, wanted=WantedDevices("tpu", 8, "v7x"))
    assert as_json(plan)["models"][0]["bytes"]["temporary"] is None
    assert "until the programs are compiled" in printed(plan)


def test_a_checkpoint_is_estimated(tmp_path: Path) -> None:
    source = write_hf_directory(tmp_path / "checkpoint", tiny_model("llama"))
    model = {"name": "m", "source": str(source), "dtype": "float32", "num_slots": 4, "mesh": {"tp": 2}}
    plan = planned(tmp_path, {**model, "kv_cache": {"pages": 3}}, wanted=WantedDevices("tpu", 4, "v5e"))
    written = as_json(plan)["models"][0]
    num_weights = sum(tensor.size for tensor in tiny_model("llama").tensors.values())
    # And a rotary table of 128 positions and 8 dimensions, which is not split.
    assert written["bytes"]["weights"] == num_weights * 4 // 2 + 128 * 8 * 4
    assert written["bundle"] is None
    # 3 pages of 128 positions, 2 layers, 1 of 2 KV heads of 8, k and v, float32.
    assert written["bytes"]["kv_cache"] == 3 * 128 * 2 * 8 * 2 * 4
    assert written["requests_together"] == [{"tokens": 128, "requests": 3}]
    assert "decode[4,8]" in written["programs"]
    assert not (tmp_path / "cache").exists()


def test_models_that_fit_only_alone_are_refused_together(tmp_path: Path) -> None:
    """Each takes most of a device by default, which the other one cannot take again."""
    big = tiny_model("llama", max_position_embeddings=2**20)
    source = write_hf_directory(tmp_path / "checkpoint", big)
    models = [
        {"name": name, "source": str(source), "num_slots": 4096, "mesh": {"tp": 1}} for name in ("a", "b")
    ]
    for model in models:
        require_fit(planned(tmp_path, model))
    plan = planned(tmp_path, *models)
    assert plan.left_bytes is not None
    assert plan.left_bytes < 0
    with pytest.raises(DeviceError, match=r"the models need \d+\.\d\d GiB per device together; a device has"):
        require_fit(plan)
    assert "too little on each" in printed(plan)


@pytest.mark.parametrize("nums_devices", [(4, 1), (1, 4)])
def test_emulated_devices_share_the_memory_of_the_process(
    tmp_path: Path, nums_devices: tuple[int, int]
) -> None:
    """The first of several models did not count, so its smaller share was not what has to be enough."""
    source = write_hf_directory(tmp_path / "checkpoint", tiny_model("llama"))
    plan = planned(tmp_path, *({"name": name, "source": str(source), "mesh": {"tp": 1}} for name in "ab"))
    models = [
        dataclasses.replace(
            model,
            fit=dataclasses.replace(
                model.fit, memory=DeviceMemory(platform="cpu", num_devices=num, total=1000, weights=0)
            ),
        )
        for model, num in zip(plan.models, nums_devices, strict=True)
    ]
    assert dataclasses.replace(plan, models=tuple(models)).device_bytes == 250


def test_each_model_that_does_not_fit_has_its_line(tmp_path: Path) -> None:
    source = write_hf_directory(tmp_path / "checkpoint", tiny_model("llama"))
    shapes = [{"prefill_length": 128}]
    models = [
        {"name": name, "source": str(source), "kv_cache": {"bytes": 1}, "precompile": shapes}
        for name in ("a", "b")
    ]
    plan = planned(tmp_path, *models, wanted=WantedDevices("tpu", 1, "v5e"))
    assert "does not fit" in printed(plan)
    with pytest.raises(ConfigError) as raised:
        require_fit(plan)
    first, second = raised.value.message.splitlines()
    assert first.startswith("models[0].kv_cache has room for 0 pages")
    assert second.startswith("models[1].kv_cache has room for 0 pages")


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_terminal(bundle: Path, tmp_path: Path, width: int) -> None:
    text = printed(planned(tmp_path, {"name": "m", "source": str(bundle)}), width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    assert "900" not in text  # bytes are written as MiB or GiB
    assert "8 tpu devices of 15.75 GiB" in text


@pytest.mark.processes
def test_the_command_prints_json_alone_and_exits_as_the_server_would(tmp_path: Path) -> None:
    source = write_hf_directory(tmp_path / "checkpoint", tiny_model("llama"))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"models: [{{name: m, source: {source}, kv_cache: {{pages: 1}}}}]\ncache_dir: {tmp_path / 'cache'}\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "vinfer", "plan", str(config), "--devices", "cpu:1", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == ConfigError.exit_code
    written = json.loads(process.stdout)
    assert not written["fits"]
    assert written["problems"][0] in process.stderr
    command += ["--set", "models[0].kv_cache.pages=1000"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["fits"]


def test_on_a_cpu_programs_take_memory_too(tmp_path: Path) -> None:
    source = write_hf_directory(tmp_path / "checkpoint", tiny_model("llama"))
    fields = {"name": "m", "source": str(source), "num_slots": 1, "mesh": {"tp": 1}}
    fields["precompile"] = [{"prefill_length": 32}]
    # The devices of this process, which JAX may know already.
    here = planned(tmp_path, fields, wanted=None)
    there = planned(tmp_path, fields, wanted=WantedDevices("tpu", 1, "v5e"))
    [on_cpu], [on_tpu] = here.models, there.models
    with_weights = [name for name in on_cpu.programs if name not in ("set_slot", "copy_page")]
    num_weights = len(tiny_model("llama").tensors)
    assert on_cpu.code_bytes == CODE_BYTES + CODE_BYTES_PER_WEIGHT * num_weights * len(with_weights)
    assert on_tpu.code_bytes == 0
    assert here.device_bytes is not None
    assert here.left_bytes == here.device_bytes - on_cpu.fit.num_bytes - on_cpu.code_bytes
    assert "in this process" in printed(here)
    assert "build: about" in printed(here)
    assert "start: not known until one has been timed" in printed(there)
    written = as_json(there)["models"][0]
    assert written["start_seconds"] is None
    assert written["build_seconds"] > 0
